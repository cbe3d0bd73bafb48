import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import write_jpeg, write_png

from offramp import DataConfig, Spec, data
from offramp.data.class_folders import list_images
from offramp.data.files import decode
from offramp.errors import OfframpError, UsageError


def write(path: Path, shade: int = 100, size: tuple[int, int] = (40, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save = write_png if path.suffix == ".png" else write_jpeg
    save(torch.full((3, *size), shade, dtype=torch.uint8), str(path))


def fill(folder: Path, counts: dict[str, int], ending: str = "jpg", size: tuple[int, int] = (40, 50)) -> None:
    """Class folders; each class has a shade of its own."""
    for label, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write(folder / name / f"{name}_{i}.{ending}", shade=40 + 60 * label, size=size)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    counts = {"n01440764": 12, "n01443537": 8, "n02105855": 5}
    fill(tmp_path / "train", counts, "JPEG")
    fill(tmp_path / "val", dict.fromkeys(counts, 2), "JPEG")
    return tmp_path


def test_imagenet_is_read(imagenet: Path) -> None:
    train, val, test = data.imagenet(imagenet, batch_size=4, holdout=6)
    assert [len(part) for part in (train, val.search, val.certify, test)] == [19, 3, 3, 6]
    assert train.class_names == ("n01440764", "n01443537", "n02105855")
    assert train.image_shape == (3, 224, 224)
    assert test.labels_S.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(int(i) for b in train.batches() for i in b.indices_B) == sorted(train.indices_S.tolist())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for split in (train, val.search, test):
        for batch in split.batches():
            shades = ((batch.images_BCHW * std + mean) * 255).mean((1, 2, 3))
            assert torch.equal(((shades - 40) / 60).round().long(), batch.targets_B)


def test_imagenet_may_lie_in_a_folder_of_its_own(imagenet: Path) -> None:
    root = imagenet.parent / "sets"
    root.mkdir()
    imagenet.rename(root / "imagenet")
    assert len(data.imagenet(root).train) == 23  # less a tenth


def test_missing_parts_of_imagenet_are_named(tmp_path: Path, imagenet: Path) -> None:
    with pytest.raises(
        OfframpError, match=r"ImageNet is not in .*nowhere: it has no folder 'train'. Put train/ and val/"
    ):
        data.imagenet(tmp_path / "nowhere")
    (imagenet / "val").rename(imagenet / "test")
    with pytest.raises(OfframpError, match="it has no folder 'val'"):
        data.imagenet(imagenet)


def test_validation_images_that_are_not_sorted_into_classes_are_refused(imagenet: Path) -> None:
    write(imagenet / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(OfframpError, match=r"val_00000001\.JPEG lies outside the class folders"):
        data.imagenet(imagenet)


def test_train_and_val_must_have_the_same_classes(imagenet: Path) -> None:
    (imagenet / "val" / "n02105855").rename(imagenet / "val" / "n02105856")
    with pytest.raises(OfframpError, match="must have the same classes; n02105855 is in one of them only"):
        data.imagenet(imagenet)


def test_class_folders_directly(tmp_path: Path) -> None:
    fill(tmp_path, {"dog": 10, "cat": 15})
    train, val, test = data.folder(tmp_path, batch_size=5)
    assert train.class_names == ("cat", "dog")
    assert (len(train), len(val), len(test)) == (18, 2, 5)
    assert test.labels_S.bincount().tolist() == [3, 2]
    assert len({int(i) for split in (train, *val.splits(), test) for i in split.indices_S}) == 25


@pytest.mark.parametrize("name", ["test", "val"])
def test_an_official_test_folder_is_the_test_set(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", {"cat": 6, "dog": 5})
    fill(tmp_path / name, {"dog": 3})  # of some classes there may be no test image
    train, _, test = data.folder(tmp_path, holdout=0)
    assert (len(train), test.labels_S.tolist()) == (11, [1, 1, 1])
    assert test.class_names == ("cat", "dog")


def test_with_test_and_val_the_unused_one_is_announced(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        fill(tmp_path / part, {"cat": 6, "dog": 5})
    with pytest.warns(UserWarning, match="val is not used"):
        test = data.folder(tmp_path).test
    assert test.listing.folder == tmp_path / "test"  # type: ignore[attr-defined]


def test_train_may_be_a_class(tmp_path: Path) -> None:
    fill(tmp_path, {"train": 6, "bus": 5})
    assert data.folder(tmp_path).train.class_names == ("bus", "train")


def test_a_folder_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "pets", {"cat": 12, "dog": 12})
    monkeypatch.chdir(tmp_path)
    parts = data.load(DataConfig(source=Spec("folder:pets", {"image_size": 32}), batch_size=4, workers=1))
    config = parts.train.config
    assert config is not None
    assert config.source == Spec(f"folder:{tmp_path / 'pets'}", {"image_size": 32})
    assert parts.train.name == "pets/train"
    assert data.load(config).train.fingerprint() == parts.train.fingerprint()


@pytest.mark.parametrize(
    ("size", "expected"), [((20, 30), 32), ((32, 32), 32), ((63, 100), 32), ((70, 64), 64), ((300, 250), 224)]
)
def test_the_size_fits_the_images(tmp_path: Path, size: tuple[int, int], expected: int) -> None:
    fill(tmp_path, {"cat": 6, "dog": 6}, size=size)
    assert data.folder(tmp_path).train.image_shape == (3, expected, expected)


def test_the_size_fits_the_images_trained_on_alone(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 30, "dog": 30}, size=(64, 64))
    small = data.folder(tmp_path, image_size=32, holdout=40).train.indices_S
    files = list_images(tmp_path).files
    for i in small:
        write(tmp_path / files[i], size=(40, 40))
    assert data.folder(tmp_path, holdout=40).train.image_shape == (3, 32, 32)


def test_flip_can_be_switched_off(tmp_path: Path) -> None:
    fill(tmp_path, {"b": 6, "d": 6})
    assert data.folder(tmp_path).train.flip  # type: ignore[attr-defined]
    assert not data.folder(tmp_path, flip=False).train.flip  # type: ignore[attr-defined]


def test_images_are_normalised_as_asked_and_so_are_files_afterwards(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 8, "dog": 8}, size=(32, 32))
    half = data.folder(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    (batch, *_) = half.test.batches()
    shades = {round(value, 2) for value in batch.images_BCHW.unique().tolist()}
    assert shades == {round((shade / 255 - 0.5) / 0.25, 2) for shade in (40, 100)}
    inputs = half.test.inputs()
    assert inputs is not None
    assert torch.equal(inputs.read(tmp_path / "cat" / "cat_0.jpg"), batch.images_BCHW[0])
    assert half.test.config is not None
    again = data.load(half.test.config).test.inputs()
    assert again == inputs
    for wrong in (0.5, (0.5, 0.5), "half"):
        with pytest.raises(UsageError, match="mean"):
            data.folder(tmp_path, mean=wrong)  # type: ignore[arg-type]


def test_files_are_sorted_and_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a/x.JPG", "a/y.jpeg"):
        write(tmp_path / name)
    for name in ("a/notes.txt", "a/.hidden.jpg", "labels.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / ".thumbnails").mkdir()
    (tmp_path / ".git").mkdir()
    listing = list_images(tmp_path)
    assert listing.files == ["a/x.JPG", "a/y.jpeg", "b/10.png", "b/2.png"]
    assert listing.labels_S.tolist() == [0, 0, 1, 1]
    assert decode(tmp_path / listing.files[0]).shape == (3, 40, 50)


def test_names_beyond_ascii_are_read(tmp_path: Path) -> None:
    fill(tmp_path, {"Käse": 6, "面包": 6})
    train = data.folder(tmp_path, holdout=0).train
    assert train.class_names == ("Käse", "面包")
    assert sum(batch.size for batch in train.batches()) == 10
    assert len(train.fingerprint()) == 64


def nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def one_class(folder: Path) -> None:
    fill(folder, {"cat": 5})


def empty_class(folder: Path) -> None:
    fill(folder, {"cat": 5, "dog": 5})
    (folder / "eel").mkdir()


def loose_image(folder: Path) -> None:
    fill(folder, {"cat": 5, "dog": 5})
    write(folder / "what.jpg")


def nested(folder: Path) -> None:
    fill(folder, {"training/cat": 5, "testing/cat": 5})


def unknown_test_class(folder: Path) -> None:
    fill(folder / "train", {"cat": 5, "dog": 5})
    fill(folder / "test", {"cat": 5, "cow": 5})


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (nothing, "has no class folders; put the images of each class into a folder of its own"),
        (one_class, "has one class folder only, 'cat'"),
        (empty_class, "eel holds no image"),
        (loose_image, r"what\.jpg lies outside the class folders"),
        (nested, "cat is a folder in a class folder"),
        (unknown_test_class, "test/cow: there is no class 'cow' among the training images"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(layout: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    layout(tmp_path / "own")
    with pytest.raises(OfframpError, match=message) as caught:
        data.folder(tmp_path / "own")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no folder .*nowhere"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="workers must be a whole number of at least 0, not -1"):
        data.folder(tmp_path, workers=-1)
    fill(tmp_path, {"cat": 5, "dog": 5})
    with pytest.raises(UsageError, match="image_size must be a whole number"):
        data.folder(tmp_path, image_size="large")  # type: ignore[arg-type]


def test_a_damaged_image_is_found_where_the_size_is_looked_up(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 5, "dog": 5})
    for path in (tmp_path / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(OfframpError, match=r"dog_\d\.jpg cannot be read as an image"):
        data.folder(tmp_path)


def test_files_that_cannot_be_used_are_named_at_once_whatever_is_wrong_with_them(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 5, "dog": 5})
    fill(tmp_path / "test", {"cat": 2, "dog": 2})
    for name in ("train/dog/x.bmp", "test/cat/y.tiff", "train/cat/cat_2.jpg", "test/dog/dog_1.jpg"):
        (tmp_path / name).write_bytes(b"BM")
    with pytest.raises(OfframpError, match="4 image files cannot be used") as error:
        data.folder(tmp_path, image_size=32)
    words = ("x.bmp: .bmp is not read; convert it", "y.tiff", "cat_2.jpg", "dog_1.jpg")
    assert all(word in str(error.value) for word in words)


def test_indices_are_positions_in_the_sorted_official_set(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 8, "dog": 8})
    train, val, _ = data.folder(tmp_path, holdout=4)
    listing = list_images(tmp_path / "train")
    for split in (train, *val.splits()):
        assert np.array_equal(split.labels_S.numpy(), listing.labels_S[split.indices_S])


def test_what_is_named_as_an_image_and_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO among the training images was waited for until it was written to, in the first step."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "good.png")
    for make in (lambda path: os.mkfifo(path), lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")):
        odd = tmp_path / "a" / "odd.png"
        make(odd)
        with pytest.raises(OfframpError, match=r"odd\.png is no regular file"):
            data.folder(tmp_path)
        odd.rmdir() if odd.is_dir() else odd.unlink()
    assert len(list_images(tmp_path).files) == 2


def test_the_limit_on_pixels_is_an_argument(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (50, 40)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(OfframpError, match=r"40 times 50 pixels, more than 0\.001 million"):
        data.folder(tmp_path, max_megapixels=0.001)
    parts = data.folder(tmp_path, max_megapixels=0.002)
    assert len(next(iter(parts.train.batches())).images_BCHW)
    with pytest.raises(UsageError, match="max-megapixels must be a number of at least"):
        data.folder(tmp_path, max_megapixels=0)
