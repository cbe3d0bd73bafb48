"""Small archives in the official formats, written by the tests themselves."""

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from offramp import processes
from offramp.data import Batch, Inputs, Split, cifar
from offramp.data.memory import MemorySplit


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2's cPickle did at protocol 2: text and bytes alike as byte strings."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value: Any) -> bytes:
    """`value` as the CIFAR archives hold it: old name of NumPy's module, integers for the flags of a dtype."""
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    content = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return content.replace(pickle.NEWFALSE + pickle.NEWTRUE + b"\x87R", b"K\x00K\x01\x87R")


def cifar_pixels(num: int, offset: int) -> np.ndarray:
    """Images `[num, 3072]`, each told from all others by its first pixel, the red plane before the green and blue."""
    planes = np.arange(3072) // 1024 * 50
    return ((np.arange(num)[:, None] + offset + planes) % 256).astype(np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pack_tar(folder: str, members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class SmallCifar:
    """A CIFAR archive of 40 training and 10 test images: its content, and the description its checksums fit."""

    def __init__(self, official: cifar.Archive, labels: list[int]) -> None:
        key, names_key = official.labels_key, official.names_key
        per_file = 40 // len(official.train)
        files: dict[str, Any] = {
            name: {
                "data": cifar_pixels(per_file, i * per_file),
                key: labels[i * per_file : (i + 1) * per_file],
                "filenames": [f"{name}_{j}.png" for j in range(per_file)],
            }
            for i, name in enumerate(official.train)
        }
        for name in official.test:
            files[name] = {"data": cifar_pixels(10, 100), key: [i % 10 for i in range(10)]}
        for name in official.meta:
            files[name] = {names_key: [f"class {i}" for i in range(10)], "coarse_label_names": ["all"]}
        self.files = {name: python2_pickle(value) for name, value in files.items()}
        self.packed = pack_tar(official.folder, {**self.files, "readme.html": b"<p>"})
        sums = {name: md5(content) for name, content in self.files.items()}
        self.archive = replace(
            official,
            md5=md5(self.packed),
            train={name: sums[name] for name in official.train},
            test={name: sums[name] for name in official.test},
            meta={name: sums[name] for name in official.meta},
        )

    def write(self, root: Path) -> Path:
        path = root / self.archive.name
        path.write_bytes(self.packed)
        return path

    def write_folder(self, root: Path) -> Path:
        folder = root / self.archive.folder
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


LABELS = [(7 * i + 3) % 10 for i in range(40)]


@pytest.fixture
def small_cifar10(monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    small = SmallCifar(cifar.CIFAR10, LABELS)
    monkeypatch.setattr(cifar, "CIFAR10", small.archive)
    return small


@pytest.fixture
def small_cifar100(monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    small = SmallCifar(cifar.CIFAR100, LABELS)
    monkeypatch.setattr(cifar, "CIFAR100", small.archive)
    return small


@pytest.fixture
def make_cifar100(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], SmallCifar]:
    def make(labels: list[int]) -> SmallCifar:
        small = SmallCifar(cifar.CIFAR100, labels)
        monkeypatch.setattr(cifar, "CIFAR100", small.archive)
        return small

    return make


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}i", *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    return idx


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make this process number `rank` of `world`."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "world_size", lambda: world)

    return become


@pytest.fixture
def same() -> Callable[[list[Batch], list[Batch]], bool]:
    """Whether two passes are equal, number by number."""

    def compare(one: list[Batch], other: list[Batch]) -> bool:
        return len(one) == len(other) and all(
            a.size == b.size and all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
            for a, b in zip(one, other, strict=True)
        )

    return compare


@pytest.fixture
def joined(as_process: Callable[[int, int], None]) -> Callable[..., list[Batch]]:
    """One pass by `world` processes, their shares put together."""

    def run(split: Split, world: int, **counters: int) -> list[Batch]:
        passes = []
        for rank in range(world):
            as_process(rank, world)
            passes.append(list(split.batches(**counters)))
        as_process(0, 1)
        return [
            Batch(*(torch.cat(parts) for parts in list(zip(*shares, strict=True))[:3]), shares[0].size)
            for shares in zip(*passes, strict=True)
        ]

    return run


@pytest.fixture
def files_give(tmp_path: Path) -> Callable[[Split, Inputs], torch.Tensor]:
    """What is read from PNG files of a split's images, written as they are."""

    def write_and_read(split: Split, inputs: Inputs) -> torch.Tensor:
        assert isinstance(split, MemorySplit)
        path, images = tmp_path / "image.png", []
        for pixels in split.pixels_SCHW[torch.from_numpy(split.indices_S)].numpy():
            Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path)
            images.append(inputs.read(path))
        return torch.stack(images)

    return write_and_read
