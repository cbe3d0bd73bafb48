"""Small archives in the official formats, written by the tests themselves."""

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from offramp import processes
from offramp.data import Batch, Inputs, Split
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
    return content.replace(pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3, b"K\x00K\x01" + pickle.TUPLE3)


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
    """A CIFAR archive of 40 training and 10 test images: its content, and torchvision's class with its checksums.

    `others` are files that stand in it in place of those of their names.
    """

    def __init__(self, official: Any, **others: bytes) -> None:
        key = official.meta["key"].replace("_names", "s")
        per_file = 40 // len(official.train_list)
        files: dict[str, Any] = {official.meta["filename"]: {official.meta["key"]: [f"class {i}" for i in range(10)]}}
        for i, (name, _) in enumerate(official.train_list):
            positions = range(i * per_file, (i + 1) * per_file)
            files[name] = {"data": cifar_pixels(per_file, positions[0]), key: [(7 * j + 3) % 10 for j in positions]}
        for name, _ in official.test_list:
            files[name] = {"data": cifar_pixels(10, 100), key: list(range(10)), "filenames": ["0.png"]}
        self.files = {name: python2_pickle(value) for name, value in files.items()} | others
        self.packed = pack_tar(official.base_folder, {**self.files, "readme.html": b"<p>"})
        sums = {name: md5(content) for name, content in self.files.items()}
        published = {
            "tgz_md5": md5(self.packed),
            "train_list": [[name, sums[name]] for name, _ in official.train_list],
            "test_list": [[name, sums[name]] for name, _ in official.test_list],
            "meta": {**official.meta, "md5": sums[official.meta["filename"]]},
        }
        self.published: Any = type(official.__name__, (official,), published)

    def write(self, root: Path, packed: bool = True) -> Path:
        if packed:
            (root / self.published.filename).write_bytes(self.packed)
            return root / self.published.filename
        (root / self.published.base_folder).mkdir()
        for name, content in self.files.items():
            (root / self.published.base_folder / name).write_bytes(content)
        return root / self.published.base_folder


@pytest.fixture
def make_cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SmallCifar]:
    """A small archive, which from then on is what is published."""
    official = {name: getattr(datasets, name) for name in ("CIFAR10", "CIFAR100")}

    def make(name: str, **others: bytes) -> SmallCifar:
        small = SmallCifar(official[name], **others)
        monkeypatch.setattr(datasets, name, small.published)
        return small

    return make


@pytest.fixture
def small_cifar10(make_cifar: Callable[..., SmallCifar]) -> SmallCifar:
    return make_cifar("CIFAR10")


@pytest.fixture
def small_cifar100(make_cifar: Callable[..., SmallCifar]) -> SmallCifar:
    return make_cifar("CIFAR100")


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
