"""Garments: 6,800 images of Fashion-MNIST that ship with the package, so that no download is needed.

A subset: no figure measured on it compares with one on Fashion-MNIST. `benchmarks/garments.py` makes the files.

S images. Licence (MIT): `fashion_subset/LICENSE`.
"""

import functools
import json
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch import Tensor

from offramp.checks import check_whole
from offramp.data.base import HeldOut, Parts, builder
from offramp.data.fashion import CLASS_NAMES, LOOK
from offramp.data.memory import MemorySplit
from offramp.data.randomness import IntArray
from offramp.errors import UsageError

FOLDER = Path(__file__).parent / "fashion_subset"
COUNTS = {"train": 3000, "search": 800, "certify": 2000, "test": 1000}
SIDE, IN_A_ROW = 28, 100  # pixels of an image; images in a row of the picture


@builder
def garments(*, batch_size: int = 64, limit: int | None = None) -> Parts:
    """6,800 grey images of clothes, 28 pixels, 10 classes, out of Fashion-MNIST; random crop (padding 4) and flip.

    The division is fixed: 3,000 for training, 800 for search, 2,000 for certify, 1,000 for test. Each part is the
    beginning of the part of that name that `fashion_mnist()` has, without images that Fashion-MNIST has twice. So a
    network trained on either has seen no image that is held out, or for test, in the other.
    """
    if limit is not None:
        check_whole("limit", limit, 1)
        if limit > COUNTS["train"]:
            raise UsageError(f"limit={limit} is more than the {COUNTS['train']} training images there are.")
    pixels_SCHW, labels_S = _read()
    ends = list(accumulate(COUNTS.values()))
    positions = dict(zip(COUNTS, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))

    def split(part: str) -> MemorySplit:
        chosen = positions[part][: limit if part == "train" else None]
        name, training = f"garments/{part}", part == "train"
        return MemorySplit(
            pixels_SCHW,
            labels_S,
            name,
            chosen,
            training,
            look=LOOK,
            class_names=CLASS_NAMES,
            batch_size=batch_size,
        )

    holdout = COUNTS["search"] + COUNTS["certify"]
    used = None if limit is None else limit + holdout  # as the other data sets count: with those held out
    division = {"training_images": COUNTS["train"] + holdout, "limit": used, "holdout": holdout}
    return Parts(split("train"), HeldOut(split("search"), split("certify"), division), split("test"))


@functools.cache
def _read() -> tuple[Tensor, IntArray]:
    """All images, `[S, 1, 28, 28]` uint8, and their classes: train, search, certify, test."""
    from torchvision.io import ImageReadMode, decode_image  # slow to import

    picture_HW = decode_image(str(FOLDER / "images.png"), ImageReadMode.GRAY)[0]
    rows = picture_HW.unflatten(0, (-1, SIDE)).unflatten(2, (IN_A_ROW, SIDE))  # row, y, column, x
    pixels_SCHW = rows.permute(0, 2, 1, 3).reshape(-1, 1, SIDE, SIDE)
    labels = json.loads((FOLDER / "labels.json").read_text())
    return pixels_SCHW, np.array([int(digit) for part in COUNTS for digit in labels[part]])
