"""Splits made of a split: its training images without augmentation, and what is kept of its images.

B images of a batch, S images of the split, F numbers kept of each.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from offramp.data import Inputs, Split
from offramp.data.memory import MemorySplit
from offramp.data.randomness import Draw, IntArray
from offramp.devices import has_room, sent


class SplitOf(Split):
    """The images of another split, in the same order, read in another way."""

    def __init__(self, split: Split) -> None:
        super().__init__(
            split.name,
            split.labels_S.numpy(),
            split.indices_S,
            class_names=split.class_names,
            image_shape=split.image_shape,
            batch_size=split.batch_size,
            training=split.training,
        )
        self.split = split
        self.config, self.home, self.size_reason = split.config, split.home, split.size_reason

    def content(self) -> Iterator[bytes]:
        return self.split.content()

    def unreadable(self, advance: Callable[[int], None]) -> list[str]:
        return self.split.unreadable(advance)

    def fingerprint(self) -> str:
        return self.split.fingerprint()

    def inputs(self) -> Inputs | None:
        return self.split.inputs()


class Unaugmented(SplitOf):
    """Training images with the test transforms: shuffled anew in every epoch, and the same in each."""

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        return self.split.read(shares, None)

    def unreadable(self, advance: Callable[[int], None]) -> list[str]:
        return self.split.plain().unreadable(advance)

    def on(self, device: torch.device) -> "Unaugmented":
        other = copy.copy(self)
        other.device, other.split = device, self.split.on(device)
        return other


class Kept(SplitOf):
    """What was computed of each image, in the place of the images: rows in the order of `split.indices_S`."""

    def __init__(self, split: Split, rows_SF: Tensor) -> None:
        super().__init__(split)
        self.rows_SF = rows_SF
        self._order_S = np.argsort(self.indices_S, kind="stable")

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        """The rows `[B, F]` of each share; `draw` is not looked at."""
        for indices_B in shares:
            places_B = self._order_S[np.searchsorted(self.indices_S, indices_B, sorter=self._order_S)]
            yield self.rows_SF[sent(torch.from_numpy(places_B), self.rows_SF.device)]

    def on(self, device: torch.device) -> "Kept":
        """See `Split.on`; the rows stay where they are if they would take much of what is free there."""
        other = copy.copy(self)
        if has_room(device, self.rows_SF.nbytes):
            other.device, other.rows_SF = device, self.rows_SF.to(device)
        return other


def is_augmented(split: Split) -> bool:
    """Whether an image may be another in every epoch. Of splits of other kinds than ours this is not known: yes."""
    if isinstance(split, MemorySplit):
        return split.training and bool(split.look.padding or split.look.flip)
    return split.training and not isinstance(split, SplitOf)
