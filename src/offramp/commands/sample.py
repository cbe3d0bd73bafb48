"""Some images of a part, evenly spread, with test transforms: enough for a mean, in a fixed order, or mixed in memory.

Not simply the first: folders and ImageNet stand sorted by class, and their first ten thousand are eight classes.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offramp.data import Split
from offramp.data.randomness import Draw, IntArray

CALIBRATED_ON = 256  # images, of int8


class Sample(Split):
    """`limit` images of `whole` (all, where there are no more), evenly spread over its order, with test transforms."""

    def __init__(self, whole: Split, limit: int) -> None:
        limit = min(limit, len(whole))
        self.whole = whole
        self.positions_S = np.arange(limit) * len(whole) // max(limit, 1)
        super().__init__(
            whole.name,
            whole.labels_S.numpy()[self.positions_S],
            whole.indices_S[self.positions_S],
            class_names=whole.class_names,
            image_shape=whole.image_shape,
            batch_size=whole.batch_size,
            training=False,
        )

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        """See `Split.read`."""
        return self.whole.read(shares, draw)

    def content(self) -> Iterator[bytes]:
        """See `Split.content`."""
        yield self.whole.fingerprint().encode()
        yield self.positions_S.astype("<i8").tobytes()


class Pool(NamedTuple):
    """Images in memory, mixed, and where they stand in their part of the data set."""

    images_SCHW: Tensor
    positions_S: Tensor


def pool(split: Split, wanted: int) -> Pool:
    """So many images of `split` with test transforms, evenly spread over it and mixed; all where there are fewer.

    Mixed, because parts may stand sorted by class: a batch would hold one class, and its images leave together.
    """
    sample = Sample(split, wanted)
    order_S = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))
    images_SCHW = torch.cat([batch.images_BCHW for batch in sample.batches()])
    return Pool(images_SCHW[order_S], torch.from_numpy(sample.positions_S)[order_S])
