"""CIFAR-10 and CIFAR-100 from their official archives for Python, packed or unpacked.

S images. Krizhevsky, Learning multiple layers of features from tiny images, 2009. The archives hold pickles; they are
checked against their published checksums, and read by an unpickler that can build nothing but arrays and plain values.
"""

import functools
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from offramp.data.archives import check_file, download, root_folder
from offramp.data.base import Parts
from offramp.data.builder import builder
from offramp.data.labels import check_labels
from offramp.data.memory import Look, MemorySplit
from offramp.data.partition import Cut, divide
from offramp.data.randomness import IntArray
from offramp.errors import OfframpError

HOLDOUT = 5000
PADDING = 4


@dataclass(frozen=True)
class Archive:
    """An official archive: file names with their MD5 sums, and where the labels and class names stand."""

    name: str
    md5: str
    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: Mapping[str, str]
    labels_key: str
    names_key: str

    @property
    def url(self) -> str:
        """Where its authors publish it."""
        return f"https://www.cs.toronto.edu/~kriz/{self.name}"


CIFAR10 = Archive(
    name="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    labels_key="labels",
    names_key="label_names",
)
CIFAR100 = Archive(
    name="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    labels_key="fine_labels",
    names_key="fine_label_names",
)
# The peers' numbers; CIFAR-10's means are not the more common ones (protocols, 2.1).
LOOK10 = Look((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616), PADDING, flip=True)
LOOK100 = Look((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), PADDING, flip=True)


@builder
def cifar10(
    root: str | Path | None = None,
    *,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
) -> Parts:
    """CIFAR-10: 50,000 and 10,000 colour images of 32 pixels, 10 classes; random crop (padding 4) and flip.

    The paper's lambda for it (0.075) is nobody's default: `offramp reproduce table4` trains by it, and its page shows
    the command of each run.

    Args:
        root: Folder with `cifar-10-python.tar.gz`, or with the folder `cifar-10-batches-py` out of it.
        batch_size: Images per step, over all processes together.
        holdout: Training images held out (default 5,000, but at most a tenth of them).
        split_seed: Seed of the permutation whose last entries are held out.
        limit: Train on only so many images; held-out ones are among them.
    """
    return _cifar("cifar10", CIFAR10, LOOK10, root, batch_size, Cut(holdout, split_seed, limit, HOLDOUT))


@builder
def cifar100(
    root: str | Path | None = None,
    *,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
) -> Parts:
    """CIFAR-100: 50,000 and 10,000 colour images of 32 pixels, 100 (fine) classes; random crop (padding 4) and flip.

    Args:
        root: Folder with `cifar-100-python.tar.gz`, or with the folder `cifar-100-python` out of it.
        batch_size: Images per step, over all processes together.
        holdout: Training images held out (default 5,000, but at most a tenth of them).
        split_seed: Seed of the permutation whose last entries are held out.
        limit: Train on only so many images; held-out ones are among them.
    """
    return _cifar("cifar100", CIFAR100, LOOK100, root, batch_size, Cut(holdout, split_seed, limit, HOLDOUT))


def _cifar(
    name: str,
    archive: Archive,
    look: Look,
    root: str | Path | None,
    batch_size: int,
    cut: Cut,
) -> Parts:
    contents = read_archive(archive, root_folder(root))
    (names,) = (contents[name][archive.names_key] for name in archive.meta)
    train, test = (_join(archive, contents, files, len(names)) for files in (archive.train, archive.test))
    split = functools.partial(MemorySplit, look=look, class_names=names, batch_size=batch_size)
    return divide(
        name,
        np.arange(len(train[1])),
        functools.partial(split, *train),
        split(*test, f"{name}/test", np.arange(len(test[1])), False),
        cut,
    )


def read_archive(archive: Archive, root: Path) -> dict[str, dict[str, Any]]:
    """The verified contents of an archive by file name, from its unpacked folder, else from the archive itself.

    What is not there is downloaded.
    """
    folder, packed = root / archive.folder, root / archive.name
    if folder.is_dir():
        return dict(_read_folder(archive, folder))
    if not packed.is_file():
        download(archive.url, packed, archive.md5)
    check_file(packed, archive.md5, f"Delete it and fetch {archive.url}.")
    return dict(_read_packed(archive, packed))


def _read_folder(archive: Archive, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    way_out = f"Delete {folder} and unpack {archive.name} again."
    for name, md5 in {**archive.train, **archive.test, **archive.meta}.items():
        path = folder / name
        if not path.is_file():
            raise OfframpError(f"{path} is missing. {way_out}")
        check_file(path, md5, way_out)
        with path.open("rb") as file:
            yield name, unpickle(file)


def _read_packed(archive: Archive, packed: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = {f"{archive.folder}/{name}": name for name in {**archive.train, **archive.test, **archive.meta}}
    with tarfile.open(packed, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in wanted else None
            if file is not None:
                yield wanted[member.name], unpickle(file)


def _join(
    archive: Archive, contents: dict[str, dict[str, Any]], files: Mapping[str, str], num_classes: int
) -> tuple[Tensor, IntArray]:
    pixels_SCHW = np.concatenate([contents[name]["data"] for name in files]).reshape(-1, 3, 32, 32)
    labels_S = np.concatenate([np.asarray(contents[name][archive.labels_key]) for name in files])
    check_labels(labels_S, num_classes, f"{archive.name}, {' and '.join(files)}", OfframpError)
    return torch.from_numpy(pixels_SCHW), labels_S


def unpickle(file: IO[bytes]) -> Any:
    """Read a pickle of arrays and plain values (a Python 2 pickle's strings as text); anything else is refused."""
    return _PlainUnpickler(file, encoding="latin1").load()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise OfframpError(f"A file of the data set encodes bytes as {encoding!r}. It is not read.")
    return text.encode("latin1")


def _dtype(name: str, align: int, copy: int) -> np.dtype[Any]:
    # Old pickles pass the flags as integers, about which NumPy 2.4 warns.
    return np.dtype(name, align=bool(align), copy=bool(copy))


class _PlainUnpickler(pickle.Unpickler):
    """Knows what an array is made of, and how Python 3 writes bytes into old pickles; it can call nothing else."""

    _RECONSTRUCT = np.zeros(0).__reduce__()[0]  # lives in numpy.core or numpy._core, depending on the release
    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The object a pickle asks for by name, if it is harmless."""
        if (module, name) not in self._KNOWN:
            raise OfframpError(f"A file of the data set asks for {module}.{name}, which is no data. It is not read.")
        return self._KNOWN[module, name]
