import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp import data
from offramp.data import fashion
from offramp.data.memory import statistics
from offramp.errors import OfframpError

IdxBytes = Callable[[np.ndarray], bytes]
IMAGES = (np.arange(30)[:, None, None] + np.arange(28)[None, :, None] + np.zeros(28, int)).astype(np.uint8)
LABELS = np.arange(30) % 10
OFFICIAL = (*fashion.TRAIN, *fashion.TEST)


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, idx_bytes: IdxBytes) -> dict[str, bytes]:
    """Four small files, as `name -> unpacked content`, whose checksums are the ones expected."""
    arrays = dict(zip((f.name for f in OFFICIAL), (IMAGES[:20], LABELS[:20], IMAGES[20:], LABELS[20:]), strict=True))
    contents = {name: idx_bytes(array) for name, array in arrays.items()}
    expect(monkeypatch, contents, arrays)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "no-package")
    return contents


def expect(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes], arrays: dict[str, np.ndarray]) -> None:
    files = [
        replace(file, shape=arrays[file.name].shape, md5=hashlib.md5(contents[file.name]).hexdigest())
        for file in OFFICIAL
    ]
    monkeypatch.setattr(fashion, "TRAIN", tuple(files[:2]))
    monkeypatch.setattr(fashion, "TEST", tuple(files[2:]))


def write(folder: Path, contents: dict[str, bytes], packed: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", ["", "fashion-mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_images_and_labels_are_read(contents: dict[str, bytes], tmp_path: Path, place: str, packed: bool) -> None:
    write(tmp_path / place, contents, packed)
    train, val, test = data.fashion_mnist(tmp_path, holdout=0, batch_size=8)
    assert (len(train), len(val), len(test), train.image_shape) == (20, 0, 10, (1, 28, 28))
    for split, first in ((train, 0), (test, 20)):
        for batch in split.plain().batches():
            positions = batch.indices_B + first
            expected = torch.from_numpy(IMAGES)[positions][:, None] / 255
            torch.testing.assert_close(batch.images_BCHW * 0.3530 + 0.2860, expected, atol=1e-6, rtol=0)
            assert torch.equal(batch.targets_B, positions % 10)


def test_images_written_to_files_are_themselves(
    contents: dict[str, bytes], tmp_path: Path, files_give: Callable[..., torch.Tensor]
) -> None:
    write(tmp_path, contents)
    test = data.fashion_mnist(tmp_path, holdout=0).test
    own = torch.cat([batch.images_BCHW for batch in test.batches()])
    assert torch.equal(files_give(test, test.inputs()), own)


def test_debians_package_is_used_where_root_has_no_file(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "package")
    write(tmp_path / "package", contents)
    assert len(data.fashion_mnist(tmp_path / "empty", holdout=0).train) == 20


@pytest.mark.usefixtures("no_network")
def test_missing_files_are_one_clear_error(contents: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=r"train-images-idx3-ubyte\.gz is not in .*fashion-mnist and could not") as e:
        data.fashion_mnist(tmp_path)
    assert "\n" not in str(e.value)


def damage(content: bytes, how: str) -> bytes:
    return {
        "wrong magic": bytes((0, 0, 9)) + content[3:],
        "too short": content[:-1],
        "too long": content + b"\0",
        "cut in the header": content[:7],
        "empty": b"",
        "another size": content[:7] + bytes((content[7] + 1,)) + content[8:],
        "flipped bit": content[:-1] + bytes((content[-1] ^ 1,)),
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("wrong magic", "begins with 00000903 instead of 00000803"),
        ("too short", "says it holds"),
        ("too long", "says it holds"),
        ("cut in the header", "says it holds"),
        ("empty", "begins with"),
        ("another size", "says it holds"),
        ("flipped bit", "its checksum is wrong"),
    ],
)
def test_a_wrong_file_is_named(contents: dict[str, bytes], tmp_path: Path, how: str, message: str) -> None:
    contents["t10k-images-idx3-ubyte"] = damage(contents["t10k-images-idx3-ubyte"], how)
    write(tmp_path, contents)
    with pytest.raises(OfframpError, match=rf"t10k-images-idx3-ubyte\.gz .*{message}.* delete it and fetch http"):
        data.fashion_mnist(tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 100, -3])
def test_a_half_downloaded_file_is_named(contents: dict[str, bytes], tmp_path: Path, cut: int) -> None:
    write(tmp_path, contents)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(OfframpError, match=r"train-images-idx3-ubyte\.gz "):
        data.fashion_mnist(tmp_path)


def test_a_label_outside_the_range_is_found_when_loading(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idx_bytes: IdxBytes
) -> None:
    labels = LABELS[:20].copy()
    labels[13] = 10
    contents["train-labels-idx1-ubyte"] = idx_bytes(labels)
    arrays = dict(zip(contents, (IMAGES[:20], labels, IMAGES[20:], LABELS[20:]), strict=True))
    expect(monkeypatch, contents, arrays)
    write(tmp_path, contents)
    with pytest.raises(OfframpError, match="train-labels-idx1-ubyte: the label at index 13 is 10"):
        data.fashion_mnist(tmp_path)


@pytest.mark.skipif(not fashion.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_one() -> None:
    train, val, test = data.fashion_mnist(fashion.DEBIAN)
    assert (len(train), len(val.search), len(val.certify), len(test)) == (55000, 2500, 2500, 10000)
    assert torch.equal(test.labels_S.bincount(), torch.full((10,), 1000))
    (mean,), (std,) = statistics(train.pixels_SCHW, np.arange(60000))  # type: ignore[attr-defined]
    np.testing.assert_allclose((mean, std), (0.2860405969887955, 0.35302424451492254))
    assert fashion.LOOK.mean == (round(mean, 4),)
    assert fashion.LOOK.std == (round(std, 4),)
    assert train.class_names[int(test.labels_S[0])] == "Ankle boot"  # the first test image, known to all
    assert len(data.fashion_mnist(fashion.DEBIAN, limit=5000).train) == 4500
