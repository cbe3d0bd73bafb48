"""CIFAR-10 and CIFAR-100 from their official archives for Python, packed or unpacked.

S images. Krizhevsky, Learning multiple layers of features from tiny images, 2009. Names, address and checksums of the
archives are torchvision's. They hold pickles, which are read here: the bytes whose checksum was right, and no others,
by an unpickler that can build nothing but arrays and plain values. torchvision's reader runs what a pickle asks for.
"""

import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.data.archives import check, download, root_folder
from offramp.data.base import Parts, builder
from offramp.data.memory import Look, official_parts
from offramp.data.partition import Cut
from offramp.data.randomness import IntArray
from offramp.errors import OfframpError

HOLDOUT = 5000
PADDING = 4
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

    The paper's lambda for it (0.075) is not the default: `offramp reproduce table4` trains by it, and its page shows
    the command of each run.

    `root` is the folder with `cifar-10-python.tar.gz`, or with the folder `cifar-10-batches-py` out of it. 5,000 images
    are held out by default.
    """
    return _cifar("cifar10", LOOK10, root, batch_size, Cut(holdout, split_seed, limit, HOLDOUT))


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

    `root` is the folder with `cifar-100-python.tar.gz`, or with the folder `cifar-100-python` out of it. 5,000 images
    are held out by default.
    """
    return _cifar("cifar100", LOOK100, root, batch_size, Cut(holdout, split_seed, limit, HOLDOUT))


def _cifar(name: str, look: Look, root: str | Path | None, batch_size: int, cut: Cut) -> Parts:
    from torchvision import datasets  # slow to import

    published = getattr(datasets, name.upper())  # knows the files' names, their address and checksums
    contents = {file: unpickle(content) for file, content in _files(published, root_folder(root))}
    train, test = (_join([contents[file] for file, _ in part]) for part in (published.train_list, published.test_list))
    names = contents[published.meta["filename"]][published.meta["key"]]
    return official_parts(name, train, test, cut, look=look, class_names=names, batch_size=batch_size)


def _files(published: Any, root: Path) -> Iterator[tuple[str, bytes]]:
    """Names and verified contents of the files, from their unpacked folder, else from the archive.

    Where there is neither, the archive is downloaded.
    """
    folder, packed = root / published.base_folder, root / published.filename
    sums = dict([*published.train_list, *published.test_list, (published.meta["filename"], published.meta["md5"])])
    if folder.is_dir():
        way_out = f"Delete {folder} and unpack {packed.name} again."
        for name, md5 in sums.items():
            path = folder / name
            if not path.is_file():
                raise OfframpError(f"{path} is missing. {way_out}")
            yield name, check(path.read_bytes(), md5, path, way_out)
        return
    if not packed.is_file():
        download(published.url, packed, published.tgz_md5)
    archive = check(packed.read_bytes(), published.tgz_md5, packed, f"Delete it and fetch {published.url}.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:  # in the archive's order: to go back is to unpack again
            file = tar.extractfile(member) if Path(member.name).name in sums else None
            if file is not None:
                yield Path(member.name).name, file.read()


def _join(batches: list[dict[str, Any]]) -> tuple[Tensor, IntArray]:
    pixels_SCHW = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels_S = np.concatenate([batch.get("labels", batch.get("fine_labels")) for batch in batches])
    return torch.from_numpy(pixels_SCHW), labels_S


def unpickle(content: bytes) -> Any:
    """What a Python 2 pickle of arrays and plain values holds, its strings as text; anything else is refused."""
    return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()


class _PlainUnpickler(pickle.Unpickler):
    """Knows what an array is made of, and can call nothing else."""

    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        # Its flags are integers there, about which NumPy 2.4.0 to 2.4.4 warn.
        ("numpy", "dtype"): lambda name, align, copy: np.dtype(name, align=bool(align), copy=bool(copy)),
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],  # elsewhere in NumPy 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """The object a pickle asks for by name, if it is harmless."""
        if (module, name) not in self._KNOWN:
            raise OfframpError(f"A file of the data set asks for {module}.{name}, which is no data. It is not read.")
        return self._KNOWN[module, name]
