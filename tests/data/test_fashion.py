import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from offramp import data
from offramp.data import fashion
from offramp.data.memory import statistics
from offramp.errors import OfframpError

IMAGES = (np.arange(30)[:, None, None] + np.arange(28)[None, :, None] + np.zeros(28, int)).astype(np.uint8)
LABELS = np.arange(30) % 10


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}i", *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Four small files, as `name -> unpacked content`, whose checksums are the ones expected."""
    arrays = zip(fashion.MD5, (IMAGES[:20], LABELS[:20], IMAGES[20:], LABELS[20:]), strict=True)
    contents = {name: idx(array) for name, array in arrays}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fashion, "MD5", sums)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "no-package")
    return contents


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


def test_missing_files_are_downloaded(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def serve(url: str, folder: Path, name: str, md5: str) -> None:
        packed = url.rpartition("/")[2]
        asked[packed] = md5
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(contents[packed.removesuffix(".gz")]))

    monkeypatch.setattr("torchvision.datasets.utils.download_url", serve)
    assert len(data.fashion_mnist(tmp_path, holdout=0).train) == 20
    assert asked == dict(FashionMNIST.resources)
    assert (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").is_file()


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: content[:7], lambda content: b""],
    ids=["flipped bit", "cut off", "empty"],
)
def test_a_wrong_file_is_named(contents: dict[str, bytes], tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    contents["t10k-images-idx3-ubyte"] = damage(contents["t10k-images-idx3-ubyte"])
    write(tmp_path, contents)
    with pytest.raises(OfframpError, match=r"t10k-images-idx3-ubyte\.gz is damaged.* delete it and fetch http"):
        data.fashion_mnist(tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 100, -3])
def test_a_half_downloaded_file_is_named(contents: dict[str, bytes], tmp_path: Path, cut: int) -> None:
    write(tmp_path, contents)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(OfframpError, match=r"train-images-idx3-ubyte\.gz "):
        data.fashion_mnist(tmp_path)


@pytest.mark.skipif(not fashion.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_one() -> None:
    train, val, test = data.fashion_mnist(fashion.DEBIAN)
    assert (len(train), len(val.search), len(val.certify), len(test)) == (55000, 2500, 2500, 10000)
    # Runs know their images by it: it may never change.
    assert test.fingerprint() == "7d0e7d794b781664f0c4ed8560cd253de5db5e148d6dc66324569addbd876c48"
    assert torch.equal(test.labels_S.bincount(), torch.full((10,), 1000))
    (mean,), (std,) = statistics(train.pixels_SCHW, np.arange(60000))  # type: ignore[attr-defined]
    np.testing.assert_allclose((mean, std), (0.2860405969887955, 0.35302424451492254))
    assert fashion.LOOK.mean == (round(mean, 4),)
    assert fashion.LOOK.std == (round(std, 4),)
    assert train.class_names[int(test.labels_S[0])] == "Ankle boot"  # the first test image, known to all
    assert len(data.fashion_mnist(fashion.DEBIAN, limit=5000).train) == 4500
