import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from offramp import data
from offramp.data import Inputs, Split
from offramp.data.inputs import decode
from offramp.errors import OfframpError, UsageError

FilesGive = Callable[[Split, Inputs], torch.Tensor]
GREY = Inputs(("a", "b"), (1, 6, 8), (0.5,), (0.25,), "central-fit")


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Coloured blocks, so that JPEG's loss is small."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def pixels(image: torch.Tensor, inputs: Inputs = GREY) -> torch.Tensor:
    """The normalisation undone."""
    return (image * torch.tensor(inputs.std).view(-1, 1, 1) + torch.tensor(inputs.mean).view(-1, 1, 1)) * 255


def own_images(split: Split) -> torch.Tensor:
    return torch.cat([batch.images_BCHW for batch in split.plain().batches()])


def arrays(*shape: int) -> data.Parts:
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype=np.uint8)
    return data.arrays(images, np.arange(30) % 3, class_names=["x", "y", "z"])


@pytest.mark.parametrize("shape", [(8, 8), (1, 5, 9), (3, 8, 8), (3, 7, 4)])
def test_images_of_arrays_written_to_files_are_themselves(shape: tuple[int, ...], files_give: FilesGive) -> None:
    parts = arrays(*shape)
    inputs = parts.train.inputs()
    assert inputs is not None
    assert inputs == parts.test.inputs()
    assert inputs.class_names == ("x", "y", "z")
    assert torch.equal(files_give(parts.test, inputs), own_images(parts.test))


def test_digits_written_to_files_are_themselves(files_give: FilesGive) -> None:
    test = data.digits().test
    inputs = test.inputs()
    assert inputs is not None
    assert inputs.class_names == tuple("0123456789")
    assert torch.equal(files_give(test, inputs), own_images(test))


@pytest.mark.usefixtures("small_cifar10", "small_cifar100")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_written_to_files_is_itself(name: str, tmp_path: Path, files_give: FilesGive, request: Any) -> None:
    request.getfixturevalue(f"small_{name}").write(tmp_path)
    test = getattr(data, name)(tmp_path, holdout=0).test
    assert torch.equal(files_give(test, test.inputs()), own_images(test))


def test_where_a_file_cannot_say_what_a_pixel_means_there_is_no_way() -> None:
    images, labels = np.random.default_rng(0).normal(size=(30, 8, 8)), np.arange(30) % 3
    assert data.arrays(images, labels).train.inputs() is None


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    odd = b"caf\xe9".decode(errors="surrogateescape")  # the name of a folder, which need not be UTF-8
    inputs = Inputs((odd, "b"), (3, 8, 8), (0.1, 1 / 3, 0.5), (0.2, 0.7, 1e-5), "central-cut")
    inputs.save(tmp_path / "input.json")
    assert Inputs.load(tmp_path / "input.json") == inputs
    content = (tmp_path / "input.json").read_bytes()
    inputs.save(tmp_path / "input.json")
    assert (tmp_path / "input.json").read_bytes() == content


def test_a_larger_image_is_cropped_to_the_aspect_and_shrunk(tmp_path: Path) -> None:
    wide = np.full((60, 200, 3), 255, np.uint8)
    wide[:, 60:140] = 40  # the central 80 x 60 pixels: the aspect of 8 x 6
    found = GREY.read(saved(Image.fromarray(wide), tmp_path / "wide.png"))
    torch.testing.assert_close(pixels(found), torch.full((1, 6, 8), 40.0))
    tall = Image.fromarray(np.rot90(wide))
    columns = pixels(
        GREY.read(saved(tall, tmp_path / "tall.png"))
    )  # its central 60 x 45 pixels lie inside the dark part
    torch.testing.assert_close(columns, torch.full((1, 6, 8), 40.0))


def test_shrinking_averages_and_does_not_skip(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (60, 80)).astype(np.uint8) * 255
    found = pixels(GREY.read(saved(Image.fromarray(noise), tmp_path / "noise.png")))
    assert found.std() < 20  # of four pixels each, without antialiasing, it would be about 60


def test_a_smaller_image_is_enlarged(tmp_path: Path) -> None:
    found = GREY.read(saved(Image.fromarray(np.full((3, 4), 90, np.uint8)), tmp_path / "small.png"))
    torch.testing.assert_close(pixels(found), torch.full((1, 6, 8), 90.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("resizing", ["central-fit", "central-cut"])
def test_the_thinnest_images_are_read(size: tuple[int, int], resizing: Any, tmp_path: Path) -> None:
    inputs = dataclasses.replace(GREY, image_shape=(1, 8, 8), resizing=resizing)
    found = inputs.read(saved(Image.fromarray(np.full(size, 90, np.uint8)), tmp_path / "thin.png"))
    torch.testing.assert_close(pixels(found), torch.full((1, 8, 8), 90.0))


def progressive(scans: int, trailer: bytes = b"") -> bytes:
    """A JPEG file whose last scan comes again and again: each is 14 bytes, and takes as long as the whole picture."""
    file = io.BytesIO()
    Image.new("L", (400, 300), 128).save(file, "JPEG", progressive=True, quality=10)
    content = file.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * scans + content[-2:] + trailer


def test_an_image_in_thousands_of_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.jpg"
    bomb.write_bytes(progressive(100))
    with pytest.raises(OfframpError, match="more than 64 scans"):
        decode(bomb)
    monkeypatch.setattr("offramp.data.inputs.MAX_SCANS", 1000)
    assert decode(bomb).shape == (3, 300, 400)  # the decoder itself goes through all of them
    bomb.write_bytes(progressive(20_000))
    with pytest.raises(OfframpError, match="more than 1000 scans"):
        decode(bomb)


def test_what_stands_behind_an_image_is_no_scan_of_it(tmp_path: Path) -> None:
    """Telephones put a film there, whose bytes may be any."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(progressive(5, b"\xff\xda" * 1000))
    assert decode(photo).shape == (3, 300, 400)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    thread = saved(Image.fromarray(np.zeros((1, 60000), np.uint8)), tmp_path / "thread.png")
    with pytest.raises(OfframpError, match=r"thread\.png has 60000 times 1 pixels, too thin"):
        dataclasses.replace(GREY, image_shape=(1, 224, 224), resizing="central-cut").read(thread)


@pytest.mark.parametrize("ending", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grey_is_the_luma_that_others_compute(mode: str, ending: str, tmp_path: Path) -> None:
    image = picture(6, 8, 3).convert(mode)
    image.save(tmp_path / f"image.{ending}", lossless=True)
    expected = torch.from_numpy(np.array(image.convert("L"))).float()[None]
    assert torch.equal(pixels(GREY.read(tmp_path / f"image.{ending}")).round(), expected)


@pytest.mark.parametrize(("kind", "why"), [("GIF", "it is no PNG, JPEG or WebP file"), ("WEBP", "Animated webp")])
def test_a_file_with_several_images_is_refused(kind: str, why: str, tmp_path: Path) -> None:
    frames = [picture(8, 8, seed) for seed in (1, 2)]
    frames[0].save(tmp_path / "moving.png", format=kind, save_all=True, append_images=frames[1:])
    with pytest.raises(OfframpError, match=rf"moving\.png cannot be read as an image \({why}"):
        GREY.read(tmp_path / "moving.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_shape": (2, 6, 8)}, "1 or 3 channels"),
        ({"image_shape": (1, 0, 8)}, "at least one pixel"),
        ({"image_shape": (28, 28)}, r"image_shape must be \(channels, height, width\), not \(28, 28\)"),
        ({"image_shape": (3, 6, 8)}, "one mean and one std a channel"),
        ({"mean": (float("nan"),)}, "Mean must be finite"),
        ({"std": (0.0,)}, "std finite and above 0"),
        ({"resizing": "stretch"}, "resizing must be one of central-cut, central-fit, not 'stretch'"),
        ({"resizing": "central-cut"}, "makes square images, not 6 x 8"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(GREY, **change)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": 99}, UsageError, "newer offramp"),
        ({"mean": "0.5"}, OfframpError, "is damaged"),
        ({"image_shape": [1, 8]}, OfframpError, "is damaged"),
        ({"image_shape": None}, OfframpError, "is damaged"),
        ({"more": 1}, OfframpError, "is damaged"),
        ({"std": [0]}, OfframpError, r"input\.json is damaged: Mean must be finite, std finite and above 0"),
        ({"image_shape": [2, 6, 8]}, OfframpError, r"input\.json is damaged: Images must have 1 or 3 channels"),
        ({"resizing": "stretch"}, OfframpError, r"input\.json is damaged: resizing: .*'stretch'"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    change: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "input.json"
    GREY.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=words):
        Inputs.load(path)


def test_no_file_and_no_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        Inputs.load(tmp_path / "input.json")
    (tmp_path / "input.json").write_text("{")
    with pytest.raises(OfframpError, match="is damaged"):
        Inputs.load(tmp_path / "input.json")


def test_a_folder_is_no_file_and_one_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is a folder"):
        Inputs.load(tmp_path)

    GREY.save(tmp_path / "input.json")

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(OfframpError, match=r"input\.json cannot be read: Permission denied"):
        Inputs.load(tmp_path / "input.json")


def rgb(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "RGB"])
def test_png_files_of_any_kind_become_rgb(mode: str, tmp_path: Path) -> None:
    image = picture(30, 50, 1).convert(mode)
    image.save(tmp_path / "image.png")
    assert torch.equal(decode(tmp_path / "image.png"), rgb(image))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_files_of_any_kind_become_rgb(mode: str, tmp_path: Path) -> None:
    image = picture(32, 48, 1).convert(mode)
    image.save(tmp_path / "image.jpg", quality=95, subsampling=0)
    assert (decode(tmp_path / "image.jpg").int() - rgb(image).int()).abs().float().mean() < 4


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = decode(tmp_path / "deep.png")
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.broadcast_to(values >> 8, (3, 32, 32)))


def test_webp_is_read(tmp_path: Path) -> None:
    image = picture(32, 48, 1)
    image.save(tmp_path / "image.webp", lossless=True)
    assert torch.equal(decode(tmp_path / "image.webp"), rgb(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_images_are_turned_as_their_exif_data_say(orientation: int, ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{ending}"
    picture(32, 48, 1).save(path, exif=exif)
    with Image.open(path) as image:
        expected = rgb(ImageOps.exif_transpose(image))
    found = decode(path)
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().float().mean() < 2


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path: Path) -> None:
    image = picture(30, 50, 1)  # ImageNet has a PNG called .JPEG
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "image.JPEG").write_bytes(buffer.getvalue())
    assert torch.equal(decode(tmp_path / "image.JPEG"), rgb(image))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "it is no PNG, JPEG or WebP file, or its header is damaged"),
        (b"\xff\xd8\xff", "it is no PNG, JPEG or WebP file, or its header is damaged"),
        (b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\1\x11\0", "Image is incomplete or truncated"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(OfframpError, match=rf"image\.jpg cannot be read as an image \({reason}\)\. Mend"):
        decode(path)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=r"gone\.jpg cannot be read as an image \(No such file or directory\)"):
        decode(tmp_path / "gone.jpg")
