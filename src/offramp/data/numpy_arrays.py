"""One's own images as NumPy arrays.

S images, C channels, H and W pixels, N classes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.checks import check_whole
from offramp.data.base import Parts
from offramp.data.memory import Look, MemorySplit, statistics
from offramp.data.partition import Cut, divide, share_for_test, training_part
from offramp.data.randomness import IntArray
from offramp.errors import UsageError

Array = npt.NDArray[Any]


def arrays(
    images: Array,
    labels: Array,
    test_images: Array | None = None,
    test_labels: Array | None = None,
    *,
    class_names: Sequence[str] | None = None,
    padding: int = 0,
    flip: bool = False,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
) -> Parts:
    """Parts of one's own arrays, kept as they are (uint8, or float as float32) and not copied where torch can share.

    Normalised by statistics of the images trained on, not of those held out. What is returned has no `config`: it
    cannot be built again from a run's folder. A function that reads the arrays and returns this is a data set the
    command line takes (`package.module:function`).

    Args:
        images: `[S, C, H, W]` or `[S, H, W]`; uint8 of any range, or finite floats.
        labels: `[S]`, whole numbers in `[0, N)`.
        test_images, test_labels: The same for test. Without them a fixed fifth of each class is test.
        class_names: N names. Default: numbers up to the largest training label.
        padding: Width of the black (zero) border out of which training images are cropped at random.
        flip: Whether training images are mirrored with probability 1/2.
        batch_size, holdout, split_seed, limit: See `builder`.

    Raises:
        UsageError: Shapes, types or values that do not fit, with the first offending index.
    """
    cut = Cut(holdout, split_seed, limit)
    check_whole("padding", padding, 0)
    if (test_images is None) != (test_labels is None):
        raise UsageError("test_images and test_labels go together: pass both, or neither.")
    train = _checked(images, labels, "")
    names = _names(train[1]) if class_names is None else tuple(class_names)
    if len(names) < 2:
        raise UsageError(f"There must be at least two classes; found {len(names)}.")
    _check_labels(train[1], len(names), "labels")
    if test_images is None or test_labels is None:
        test, (train_S, test_S) = train, share_for_test(train[1])
    else:
        test = _checked(test_images, test_labels, "test_")
        _check_labels(test[1], len(names), "test_labels")
        _check_same_kind(train[0], test[0])
        train_S, test_S = np.arange(len(train[1])), np.arange(len(test[1]))
    look = Look(*statistics(train[0], training_part(train_S, cut)), padding, flip)
    split = functools.partial(MemorySplit, look=look, class_names=names, batch_size=batch_size)
    return divide("arrays", train_S, functools.partial(split, *train), split(*test, "arrays/test", test_S, False), cut)


def _names(labels_S: IntArray) -> tuple[str, ...]:
    if labels_S.max() >= len(labels_S):
        raise UsageError(
            f"labels go up to {labels_S.max()} for {len(labels_S)} images; pass class_names if that is right."
        )
    return tuple(str(n) for n in range(labels_S.max() + 1))


def _check_labels(labels_S: IntArray, num_classes: int, where: str) -> None:
    wrong = np.flatnonzero((labels_S < 0) | (labels_S >= num_classes))
    if len(wrong):
        index = int(wrong[0])
        raise UsageError(
            f"{where}: the label at index {index} is {labels_S[index]}, but the classes are 0 to {num_classes - 1}."
        )


def _check_same_kind(train_SCHW: Tensor, test_SCHW: Tensor) -> None:
    if test_SCHW.shape[1:] != train_SCHW.shape[1:] or test_SCHW.dtype != train_SCHW.dtype:
        raise UsageError(
            f"test_images are {list(test_SCHW.shape[1:])} of {test_SCHW.dtype}, images are "
            f"{list(train_SCHW.shape[1:])} of {train_SCHW.dtype}."
        )


def _checked(images: Array, labels: Array, prefix: str) -> tuple[Tensor, IntArray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UsageError(
            f"{prefix}images must be [images, channels, height, width] with 1 or 3 channels, or "
            f"[images, height, width]; found {list(images.shape)}. Channels last: pass images.transpose(0, 3, 1, 2)."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{prefix}labels must be {len(images)} whole numbers, one per image; found {labels.dtype} of shape "
            f"{list(labels.shape)}."
        )
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise UsageError(f"{prefix}images must be uint8 or floating point, not {images.dtype}.")
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            images = images.astype(np.float32, copy=False)
        broken = np.flatnonzero(~np.isfinite(images).all((1, 2, 3)))
        if len(broken):
            raise UsageError(f"{prefix}images[{broken[0]}] has a pixel that is NaN or infinite (in float32).")
    return torch.from_numpy(np.require(images, requirements=["C", "W"])), labels.astype(np.int64)
