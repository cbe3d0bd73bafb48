"""Fashion-MNIST from its four idx files, packed or unpacked.

S images. Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017; Debian packages it as dataset-fashion-mnist.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offramp.data.archives import check, download, root_folder
from offramp.data.base import Parts, builder
from offramp.data.memory import Look, official_parts
from offramp.data.partition import Cut
from offramp.data.randomness import IntArray
from offramp.errors import OfframpError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FOLDER = "fashion-mnist"  # MNIST's files have the same names
HOLDOUT = 5000
CLASS_NAMES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
# Statistics of the 60,000 training images, computed here: 0.286041, 0.353024.
LOOK = Look((0.2860,), (0.3530,), padding=4, flip=True)
MD5 = {  # of the unpacked files: there are several ways to pack them
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


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

    `root` is the folder with the four files, or with a folder `fashion-mnist` that has them. Where it has none,
    Debian's package is used if it is installed. 5,000 images are held out by default.
    """
    cut = Cut(holdout, split_seed, limit, HOLDOUT)
    train, test = (read(part, root_folder(root)) for part in ("train", "t10k"))
    return official_parts("fashion-mnist", train, test, cut, look=LOOK, class_names=CLASS_NAMES, batch_size=batch_size)


def read(part: str, root: Path) -> tuple[Tensor, IntArray]:
    """Pixels `[S, 1, 28, 28]` and classes of `train` or `t10k`."""
    pixels, labels = (_content(f"{part}-{kind}-ubyte", root) for kind in ("images-idx3", "labels-idx1"))
    # An idx file begins with 4 bytes, and 4 for each dimension. bytearray: torch wants it writable.
    pixels_SCHW = torch.frombuffer(bytearray(pixels), dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)
    return pixels_SCHW, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def _content(name: str, root: Path) -> bytes:
    """The verified content of a file, from where it lies, or downloaded."""
    path = _find(name, root)
    way_out = f"It is not Fashion-MNIST's {name}; delete it and fetch {URL}{name}.gz."
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OfframpError(f"{path} is damaged or not fully downloaded ({error}). {way_out}") from error
    return check(content, MD5[name], path, way_out)


def _find(name: str, root: Path) -> Path:
    names = (f"{name}.gz", name)
    places = [folder / name for folder in (root / FOLDER, root, DEBIAN) for name in names]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        from torchvision.datasets import FashionMNIST  # slow to import, for the one run that downloads

        path = root / FOLDER / names[0]
        download(URL + names[0], path, dict(FashionMNIST.resources)[names[0]])
    return path
