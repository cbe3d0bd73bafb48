"""scikit-learn's digits, scaled up: real images that need no download.

S images. Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI, 1998.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from offramp.checks import check_whole
from offramp.data.base import Parts, builder
from offramp.data.memory import Look, MemorySplit, statistics
from offramp.data.partition import Cut, divide, share_for_test

ORIGINAL_SIZE = 8  # pixels; their values are counts from 0 to 16
_MOST_PIXELS = 256  # of a side: all images are in memory


@builder
def digits(
    *,
    image_size: int = 16,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
) -> Parts:
    """scikit-learn's 1,797 digits of 8 pixels, scaled up: one channel, 10 classes, random crop and no flip.

    There is no official test set: a fixed fifth of each class is test (355 images), the other 1,442 are for training.
    The crop shifts by one pixel in sixteen (padding 1 for 16 pixels). Normalised by the mean and deviation of
    all 1,442, which are constants of an image size, as CIFAR's are published: the same however they are divided.

    `image_size` is height and width, 8 to 256.
    """
    from sklearn.datasets import load_digits  # slow to import

    cut = Cut(holdout, split_seed, limit)
    check_whole("image_size", image_size, ORIGINAL_SIZE, _MOST_PIXELS)
    original = load_digits()
    small_S1HW = torch.from_numpy(original.images).float()[:, None]
    large_S1HW = F.interpolate(small_S1HW, (image_size, image_size), mode="bilinear")
    pixels_S1HW = (large_S1HW * (255 / 16)).round().to(torch.uint8)
    labels_S = original.target.astype(np.int64)
    train_S, test_S = share_for_test(labels_S)
    mean, std = statistics(pixels_S1HW, train_S)
    split = functools.partial(
        MemorySplit,
        pixels_S1HW,
        labels_S,
        look=Look(mean, std, padding=image_size // 16, flip=False),
        class_names=[str(name) for name in original.target_names],
        batch_size=batch_size,
    )
    test = split("digits/test", test_S, False)
    return divide("digits", train_S, split, test, cut)
