"""Fashion-MNIST from its four idx files, packed or unpacked.

S images. Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017; Debian packages it as dataset-fashion-mnist.
"""

import functools
import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.data.archives import download, root_folder
from offramp.data.base import Parts
from offramp.data.builder import builder
from offramp.data.labels import check_labels
from offramp.data.memory import Look, MemorySplit
from offramp.data.partition import Cut, divide
from offramp.data.randomness import IntArray
from offramp.errors import OfframpError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FOLDER = "fashion-mnist"  # MNIST's files have the same names
HOLDOUT = 5000
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Statistics of the 60,000 training images, computed here: 0.286041, 0.353024.
LOOK = Look((0.2860,), (0.3530,), padding=4, flip=True)


@dataclass(frozen=True)
class IdxFile:
    """A file of the data set. There are several ways to pack it, so its checksum is of the unpacked content."""

    name: str
    shape: tuple[int, ...]
    md5: str
    packed_md5: str  # of the published download


TRAIN = (
    IdxFile(
        "train-images-idx3-ubyte",
        (60000, 28, 28),
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ),
    IdxFile(
        "train-labels-idx1-ubyte", (60000,), "9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"
    ),
)
TEST = (
    IdxFile(
        "t10k-images-idx3-ubyte",
        (10000, 28, 28),
        "8181f5470baa50b63fa0f6fddb340f0a",
        "bef4ecab320f06d8554ea6380940ec79",
    ),
    IdxFile("t10k-labels-idx1-ubyte", (10000,), "15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
)


@builder
def fashion_mnist(
    root: str | Path | None = None,
    *,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
) -> Parts:
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28 pixels, 10 classes; random crop (padding 4) and flip.

    Args:
        root: Folder with the four files, or with a folder `fashion-mnist` that has them. Where it has none, Debian's
            package is used if it is installed.
        batch_size: Images per step, over all processes together.
        holdout: Training images held out (default 5,000, but at most a tenth of them).
        split_seed: Seed of the permutation whose last entries are held out.
        limit: Train on only so many images; held-out ones are among them.
    """
    cut = Cut(holdout, split_seed, limit, HOLDOUT)
    train, test = (_read(files, root_folder(root)) for files in (TRAIN, TEST))
    split = functools.partial(MemorySplit, look=LOOK, class_names=CLASS_NAMES, batch_size=batch_size)
    return divide(
        "fashion-mnist",
        np.arange(len(train[1])),
        functools.partial(split, *train),
        split(*test, "fashion-mnist/test", np.arange(len(test[1])), False),
        cut,
    )


def _read(files: tuple[IdxFile, IdxFile], root: Path) -> tuple[Tensor, IntArray]:
    pixels_SHW, labels_S = (read_file(file, root) for file in files)
    check_labels(labels_S.astype(np.int64), len(CLASS_NAMES), files[1].name, OfframpError)
    return torch.from_numpy(pixels_SHW[:, None]), labels_S.astype(np.int64)


def read_file(file: IdxFile, root: Path) -> npt.NDArray[np.uint8]:
    """The verified content of a file, from where it lies, or downloaded."""
    path = _find(file, root)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OfframpError(
            f"{path} is damaged or not fully downloaded ({error}). Delete it and fetch it again."
        ) from error
    return parse(content, file, path)


def _find(file: IdxFile, root: Path) -> Path:
    names = (f"{file.name}.gz", file.name)
    places = [folder / name for folder in (root / FOLDER, root, DEBIAN) for name in names]
    found = next((place for place in places if place.is_file()), root / FOLDER / names[0])
    if not found.is_file():
        download(URL + names[0], found, file.packed_md5)
    return found


def parse(content: bytes, file: IdxFile, path: Path) -> npt.NDArray[np.uint8]:
    """The array in an idx file: two zero bytes, type 8 (uint8), the number of dimensions, each as big-endian int32."""
    way_out = f"It is not Fashion-MNIST's {file.name}; delete it and fetch {URL}{file.name}.gz."
    header = 4 + 4 * len(file.shape)
    magic = bytes((0, 0, 8, len(file.shape)))
    if content[:4] != magic:
        raise OfframpError(f"{path} begins with {content[:4].hex()} instead of {magic.hex()}. {way_out}")
    shape = struct.unpack(f">{len(file.shape)}I", content[4:header].ljust(header - 4, b"\0"))
    if shape != file.shape or len(content) != header + math.prod(shape):
        raise OfframpError(
            f"{path} says it holds {shape} values, in {len(content)} bytes; there should be {file.shape}. {way_out}"
        )
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != file.md5:
        raise OfframpError(f"{path} has the right size, but its checksum is wrong. {way_out}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()  # torch wants it writable
