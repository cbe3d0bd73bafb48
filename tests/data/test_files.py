import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.data import Batch
from offramp.data.augment import CROP_UNIFORMS, central_box, cut, random_box, resize
from offramp.data.files import MEAN, STD, FileSplit, Listing, _guarded
from offramp.data.inputs import Inputs, decode
from offramp.data.randomness import Draw
from offramp.errors import OfframpError

NUM_IMAGES = 14
FILES = [f"{i}.{'png' if i % 2 else 'jpg'}" for i in range(NUM_IMAGES)]


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Coloured blocks, so that JPEG's loss is small."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, name in enumerate(FILES):
        picture(40 + 3 * i, 60 - 2 * i, i).save(tmp_path / name)
    return tmp_path


def make(folder: Path, workers: int = 0, training: bool = True, flip: bool = True, size: int = 4) -> FileSplit:
    return FileSplit(
        Listing(folder, FILES, np.arange(NUM_IMAGES) % 3, ("a", "b", "c")),
        "made/train",
        np.arange(1, NUM_IMAGES),
        training,
        image_size=24,
        flip=flip,
        batch_size=size,
        workers=workers,
    )


def normalised(image: torch.Tensor) -> torch.Tensor:
    return (image / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_training_images_are_the_boxes_their_numbers_say(images: Path) -> None:
    split = make(images)
    batches = list(split.batches(seed=3, epoch=2))
    assert [(len(batch.images_BCHW), batch.size) for batch in batches] == [(4, 4), (4, 4), (4, 4), (1, 1)]
    assert sorted(int(i) for batch in batches for i in batch.indices_B) == list(range(1, NUM_IMAGES))
    mirrored = 0
    for batch in batches:
        assert torch.equal(batch.targets_B, batch.indices_B % 3)
        for image, index in zip(batch.images_BCHW, batch.indices_B.tolist(), strict=True):
            whole = decode(images / FILES[index])
            numbers = Draw(3, 2).uniforms(np.array([index]), CROP_UNIFORMS + 1)[0]
            expected = resize(cut(whole, random_box(*whole.shape[1:], numbers)), (24, 24))
            mirrored += numbers[CROP_UNIFORMS] < 0.5
            assert torch.equal(image, normalised(expected.flip(-1) if numbers[CROP_UNIFORMS] < 0.5 else expected))
    assert 0 < mirrored < NUM_IMAGES - 1


def test_test_images_are_central_and_in_order(images: Path) -> None:
    split = make(images).plain()
    for batch in split.batches():
        for image, index in zip(batch.images_BCHW, batch.indices_B.tolist(), strict=True):
            whole = decode(images / FILES[index])
            resized, box = central_box(*whole.shape[1:], 24)
            assert torch.equal(image, normalised(cut(resize(whole, resized), box)))
    assert [int(i) for batch in split.batches() for i in batch.indices_B] == list(range(1, NUM_IMAGES))


def test_any_file_becomes_what_a_test_image_of_the_split_is(images: Path, tmp_path: Path) -> None:
    split = make(images)
    split.inputs().save(tmp_path / "input.json")
    inputs = Inputs.load(tmp_path / "input.json")
    assert inputs == split.inputs()
    assert inputs.class_names == ("a", "b", "c")
    for batch in split.plain().batches():
        for image, index in zip(batch.images_BCHW, batch.indices_B.tolist(), strict=True):
            assert torch.equal(inputs.read(images / FILES[index]), image)


def test_an_image_too_thin_for_the_central_cut_is_refused_with_its_name(images: Path) -> None:
    Image.fromarray(np.zeros((1, 2000, 3), np.uint8)).save(images / FILES[3])
    split = make(images)
    assert sum(batch.size for batch in split.batches(seed=0, epoch=0)) == NUM_IMAGES - 1  # random boxes are cut first
    with pytest.raises(OfframpError, match=r"3\.png has 2000 times 1 pixels, too thin to be resized\. Crop it"):
        list(split.plain().batches())


def test_without_flip_nothing_is_mirrored(images: Path) -> None:
    pairs = zip(make(images).batches(), make(images, flip=False).batches(), strict=True)
    for batch, unmirrored in pairs:
        numbers = Draw(0, 0).uniforms(batch.indices_B.numpy(), CROP_UNIFORMS + 1)
        flipped = torch.from_numpy(numbers[:, CROP_UNIFORMS] < 0.5).view(-1, 1, 1, 1)
        expected = torch.where(flipped, batch.images_BCHW.flip(-1), batch.images_BCHW)
        assert torch.equal(unmirrored.images_BCHW, expected)


@pytest.mark.parametrize("start", [0, 2])
def test_workers_change_nothing(images: Path, start: int, same: Callable[[list[Batch], list[Batch]], bool]) -> None:
    alone = list(make(images).batches(seed=1, epoch=5))[start:]
    assert same(alone, list(make(images, workers=2).batches(seed=1, epoch=5, start=start)))
    assert same(alone, list(make(images, workers=1).batches(seed=1, epoch=5, start=start)))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_memory_is_written_again_only_when_it_was_read(
    images: Path, workers: int, same: Callable[[list[Batch], list[Batch]], bool]
) -> None:
    """More steps than there are slots, and workers that are as far ahead as they may."""
    alone = [next(make(images, size=1).batches(start=start)) for start in range(NUM_IMAGES - 1)]
    batches = []
    for batch in make(images, workers, size=1).batches():
        time.sleep(0.01)
        batches.append(batch)
    assert same(batches, alone)


def test_too_little_shared_memory_is_a_clear_error(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(OfframpError, match=r"2 workers need 0 MiB of shared memory .*fewer workers"):
        list(make(images, workers=2).batches())
    assert len(list(make(images).batches())) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_each_batch(
    images: Path, workers: int, same: Callable[..., bool], joined: Callable[..., list[Batch]]
) -> None:
    alone = list(make(images).batches(seed=1, epoch=5))
    assert same(joined(make(images, workers), 2, seed=1, epoch=5), alone)  # the last share of one of them is empty


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_leaves_the_generator_of_the_run_alone(images: Path, workers: int) -> None:
    before = torch.get_rng_state()
    assert len(list(make(images, workers).batches())) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_an_abandoned_pass_leaves_no_process(images: Path) -> None:
    batches = make(images, workers=2).batches()
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


def test_a_finished_pass_leaves_no_process(images: Path) -> None:
    batches = make(images, workers=2).batches()
    assert len(list(batches)) == 4
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_one_line(images: Path, workers: int) -> None:
    path = images / "6.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(OfframpError, match=r"6\.jpg cannot be read as an image \(.*truncated\)") as caught:
        list(make(images, workers).batches())
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_gone_is_a_clear_error() -> None:
    def killed() -> Iterator[int]:
        yield 1
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nDetails follow.")

    batches = _guarded(killed())
    assert next(batches) == 1
    with pytest.raises(
        OfframpError, match=r"is gone: .*killed by signal: Killed. Out of memory.*fewer workers"
    ) as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_worker_keep_their_traceback() -> None:
    def broken() -> Iterator[int]:
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
        yield 1

    with pytest.raises(RuntimeError, match="Caught RuntimeError") as caught:
        next(_guarded(broken()))
    assert not isinstance(caught.value, OfframpError)


def test_the_fingerprint_knows_names_sizes_and_labels(images: Path) -> None:
    before = make(images).fingerprint()
    assert before == make(images, workers=2, training=False).fingerprint()
    path = images / "3.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert make(images).fingerprint() != before


@pytest.mark.parametrize("workers", [0, 1])
def test_on_a_device_bytes_are_sent_and_made_into_images_there(images: Path, workers: int) -> None:
    split = make(images, workers)
    there = torch.device("meta")
    for batch, ours in zip(split.batches(), split.on(there).batches(), strict=True):
        assert ours.images_BCHW.device == there
        assert ours.images_BCHW.shape == batch.images_BCHW.shape
