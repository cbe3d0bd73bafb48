"""Rows on their way through a network, and the answers of those that have left.

B rows of a carry, N classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.network import Carry
from offramp.policy import State


class Answers(NamedTuple):
    """What an engine answers for each image, in the order of the images, on the engine's device."""

    labels_B: Tensor
    """The class, int64."""
    exits_B: Tensor
    """The exit that answered, from 0, int64; never one that the engine's plan does not ask (`Engine.closed`)."""
    confidence_B: Tensor
    """Its confidence, in the units of the policy's measure."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Images between two stages.

    Attributes:
        ids_B: Which images they are.
        carry: Its tensors have a row for each of them, and perhaps others that no longer matter.
        state: What the policy's measure remembers of each image.
        places_B: The row of each image in the carry; None: they are its first ones, in order.
    """

    ids_B: Tensor
    carry: Carry
    state: State = ()
    places_B: Tensor | None = None

    def __len__(self) -> int:
        return self.ids_B.shape[0]  # len of a tensor takes longer

    @property
    def run(self) -> int:
        """Rows of the carry: what the next stage would work on."""
        return self.carry[0].shape[0]

    def of(self, tensor_B: Tensor) -> Tensor:
        """The images' rows of a tensor that has as many rows as the carry."""
        if self.places_B is not None:
            return tensor_B[self.places_B]
        return tensor_B if len(self) == self.run else tensor_B[: len(self)]

    def keep(self, which_B: Tensor) -> "Rows":
        """The images at the positions `which_B` among these; nothing in the carry is moved."""
        places_B = which_B if self.places_B is None else self.places_B[which_B]
        return Rows(self.ids_B[which_B], self.carry, tuple(tensor[which_B] for tensor in self.state), places_B)

    def compact(self, size: int | None = None) -> "Rows":
        """The same images with a carry of `size` rows, by default as many as there are images.

        Rows behind are copies of the first image's.
        """
        size = len(self) if size is None else size
        if size == self.run and self.places_B is None:
            return self
        places_B = torch.arange(len(self), device=self.ids_B.device) if self.places_B is None else self.places_B
        if size > len(self):
            places_B = torch.cat([places_B, places_B[:1].expand(size - len(self))])
        carry = tuple(room(tensor, size) for tensor in self.carry)
        for tensor, out in zip(self.carry, carry, strict=True):
            copy_rows(tensor, places_B, out)
        return Rows(self.ids_B, carry, self.state)

    def drop(self, size: int) -> "Rows":
        """Compacted to `size` rows where that makes the carry shorter."""
        return self.compact(size) if size < self.run else self

    def split(self, size: int) -> "list[Rows]":
        """Pieces of at most `size` images, views; every row of the carry must be an image's, in order."""
        return [self.cut(slice(first, first + size)) for first in range(0, len(self), size)]

    def cut(self, rows: slice) -> "Rows":
        """Those at the positions `rows`, as `split` does."""
        carry, state = (tuple(tensor[rows] for tensor in tensors) for tensors in (self.carry, self.state))
        return Rows(self.ids_B[rows], carry, state)


def join(pieces: Sequence[Rows]) -> Rows:
    """All images of the pieces, without other rows."""
    compacted = [piece.compact() for piece in pieces]
    if len(compacted) == 1:
        return compacted[0]
    carry = tuple(map(torch.cat, zip(*(piece.carry for piece in compacted), strict=True)))
    state = tuple(map(torch.cat, zip(*(piece.state for piece in compacted), strict=True)))
    return Rows(torch.cat([piece.ids_B for piece in compacted]), carry, state)


def room(tensor: Tensor, size: int) -> Tensor:
    """An empty tensor for `size` rows like those of another, in the same layout."""
    layout = torch.channels_last if _innermost(tensor) else torch.contiguous_format
    return torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)


def copy_rows(tensor: Tensor, places_B: Tensor, out: Tensor) -> None:
    """Copy rows of a tensor to where they are wanted, channels innermost or not."""
    if _innermost(tensor) and _innermost(out):
        tensor, out = tensor.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    if out.is_contiguous():
        torch.index_select(tensor, 0, places_B, out=out)
    else:
        out.copy_(tensor.index_select(0, places_B))


def _innermost(tensor: Tensor) -> bool:
    """Whether it is a map whose channels are innermost; `index_select` by itself would not keep that."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


class Left(NamedTuple):
    """Images that have left at one exit, and their answers."""

    ids_B: Tensor
    answers: Answers


def in_order(left: Iterable[Left], num_images: int) -> Answers:
    """The answers of all images, whose ids are 0 to `num_images` - 1, in that order."""
    pieces = list(left)
    if len(pieces) == 1:  # they left together, so they are in order
        return pieces[0].answers
    ids_B = torch.cat([piece.ids_B for piece in pieces])
    columns = [torch.cat(column) for column in zip(*(piece.answers for piece in pieces), strict=True)]
    return Answers(*(values_B.new_empty(num_images).index_copy_(0, ids_B, values_B) for values_B in columns))


def joined(answers: Iterable[Answers]) -> Answers:
    """The answers of successive batches in one, on the CPU."""
    columns = zip(*answers, strict=True)
    return Answers(*(torch.cat([values_B.cpu() for values_B in column]) for column in columns))
