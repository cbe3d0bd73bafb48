"""Fashion-pairs: images of two garments of Fashion-MNIST, in 100 classes. Made here; not CIFAR, nor comparable with it.

The red channel shows one garment and the green another; the class is the ordered pair of theirs. The blue channel shows
a third garment, of any class, which says nothing about the class of the image.

S images, B blocks of garments, N = 10 classes of garments.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from offramp.data import fashion
from offramp.data.archives import root_folder
from offramp.data.base import Parts, builder
from offramp.data.memory import Look, official_parts
from offramp.data.partition import Cut
from offramp.data.randomness import IntArray, Purpose, permutation

NAME = "fashion-pairs"
N = len(fashion.CLASS_NAMES)
MARGIN = 2  # around a garment of 28 pixels
CLASS_NAMES = tuple(f"{red} | {green}" for red in fashion.CLASS_NAMES for green in fashion.CLASS_NAMES)
# Statistics of the 20,000 training images, computed here. The three channels have the same garments on average.
LOOK = Look((0.2190,) * 3, (0.3318,) * 3, padding=4, flip=True, by_channel=True)


@builder
def fashion_pairs(
    root: str | Path | None = None,
    *,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
) -> Parts:
    """Fashion-pairs: 20,000 and 10,000 images of 3 x 32 x 32, made of Fashion-MNIST's; each channel is cropped and
    mirrored by itself.

    Each training garment is in one training image, so that none is in two of train, search and certify. Each test
    garment is in three test images, once in each channel: these are not quite independent of each other.

    `root` is that of `fashion_mnist`.
    """
    cut = Cut(holdout, split_seed, limit)
    train, test = (_read(part, root_folder(root)) for part in ("train", "t10k"))
    return official_parts(NAME, train, test, cut, look=LOOK, class_names=CLASS_NAMES, batch_size=batch_size)


def _read(part: str, root: Path) -> tuple[Tensor, IntArray]:
    """Pixels and classes of one part."""
    garments_SCHW, classes_S = fashion.read(part, root)
    blocks = len(classes_S) // N**3
    if part == "train":
        triples = np.arange(blocks // 3 * 3).reshape(3, -1).T  # each block in one channel of one triple
    else:
        triples = (np.arange(blocks)[:, None] + np.arange(3)) % blocks  # each block in each channel once
    pairs_S3 = pairs(classes_S, triples)
    pixels_S3HW = F.pad(garments_SCHW[:, 0][torch.from_numpy(pairs_S3)], (MARGIN,) * 4)
    return pixels_S3HW, classes_S[pairs_S3[:, 0]] * N + classes_S[pairs_S3[:, 1]]


def pairs(classes_S: IntArray, triples: IntArray) -> IntArray:
    """Which garments make an image: positions `[images, 3]` of the garments in its red, green and blue channel.

    The garments of each class, in a fixed random order, are cut into blocks of 100. A triple of different blocks makes
    1,000 images, one for each combination of three classes, and uses each of its garments once. There have to be
    as many garments of each class; `triples` are `[T, 3]` numbers of blocks, for the three channels.
    """
    orders = [np.flatnonzero(classes_S == n) for n in range(N)]
    orders = [order[permutation(len(order), Purpose.PAIRS, len(classes_S), n)] for n, order in enumerate(orders)]
    blocks_BNNN = np.stack([order[: len(order) // N**2 * N**2].reshape(-1, N, N) for order in orders], axis=1)
    # Each [T, own class, one of the others', other's].
    red, green, blue = (blocks_BNNN[numbers] for numbers in triples.T)
    channels = (red, green.transpose(0, 2, 1, 3), blue.transpose(0, 2, 3, 1))  # each [T, red's, green's, blue's class]
    return np.stack(channels, axis=-1).reshape(-1, 3)
