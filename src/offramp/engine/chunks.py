"""Room in front of a stage, filled as images come: each row is copied once, to where the stage will read it.

B rows of a carry.
"""

from collections import deque

import torch
from torch import Tensor

from offramp.engine.rows import Rows
from offramp.network import Carry
from offramp.policy import State


class Chunk:
    """Images that will be run together, at most `size` of them.

    Args:
        size: How many there is room for.
        like: Rows whose carry and state have the shapes, types and layouts of all that will come.
    """

    def __init__(self, size: int, like: Rows) -> None:
        self.size, self.filled = size, 0
        self.ids: list[Tensor] = []
        self.carry: Carry = tuple(_room(tensor, size) for tensor in like.carry)
        self.state: State = tuple(_room(tensor, size) for tensor in like.state)

    def put(self, rows: Rows, which: slice) -> None:
        """Take in some of the images, for which there has to be room."""
        ids_B = rows.ids_B[which]
        places_B = None if rows.places_B is None else rows.places_B[which]
        here = slice(self.filled, self.filled + len(ids_B))
        for room, tensor in zip(self.carry, rows.carry, strict=True):
            if places_B is None:
                room[here] = tensor[which]
            else:
                _select(tensor, places_B, room[here])
        for room, tensor in zip(self.state, rows.state, strict=True):
            room[here] = tensor[which]
        self.ids.append(ids_B)
        self.filled = here.stop

    def rows(self) -> Rows:
        """The images that are there; no row of the carry is another's."""
        carry, state = (tuple(tensor[: self.filled] for tensor in tensors) for tensors in (self.carry, self.state))
        return Rows(torch.cat(self.ids), carry, state)


class Queue:
    """Images in front of a stage, in the order in which they came, in chunks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.chunks: deque[Chunk | Rows] = deque()

    def __len__(self) -> int:
        return sum(chunk.filled if isinstance(chunk, Chunk) else len(chunk) for chunk in self.chunks)

    @property
    def first(self) -> Tensor | None:
        """The id of the first image, `[1]`."""
        if not self.chunks:
            return None
        chunk = self.chunks[0]
        return (chunk.ids[0] if isinstance(chunk, Chunk) else chunk.ids_B)[:1]

    def put(self, rows: Rows) -> None:
        """Queue images. Whole chunks whose rows stand together already are not copied."""
        done = 0
        while done < len(rows):
            last = self.chunks[-1] if self.chunks else None
            if not isinstance(last, Chunk) or last.filled == self.size:
                if rows.places_B is None and len(rows) - done >= self.size:
                    self.chunks.append(rows.cut(slice(done, done + self.size)))
                    done += self.size
                    continue
                last = Chunk(self.size, rows)
                self.chunks.append(last)
            taken = min(self.size - last.filled, len(rows) - done)
            last.put(rows, slice(done, done + taken))
            done += taken

    def take(self) -> Rows:
        """The first chunk, as full as it is."""
        chunk = self.chunks.popleft()
        return chunk.rows() if isinstance(chunk, Chunk) else chunk


def _room(tensor: Tensor, size: int) -> Tensor:
    """An empty tensor for `size` rows like those of another, in the same layout."""
    innermost = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if innermost else torch.contiguous_format
    return torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)


def _select(tensor: Tensor, places_B: Tensor, out: Tensor) -> None:
    """Copy rows of a tensor to where they are wanted, channels innermost or not."""
    if tensor.dim() == 4 and all(one.is_contiguous(memory_format=torch.channels_last) for one in (tensor, out)):
        tensor, out = tensor.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    if out.is_contiguous():
        torch.index_select(tensor, 0, places_B, out=out)
    else:
        out.copy_(tensor.index_select(0, places_B))
