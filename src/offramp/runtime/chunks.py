"""Room in front of a stage, filled as images come: each row is copied once, to where the stage will read it.

B rows of a carry.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.devices import PendingCopy
from offramp.errors import UsageError
from offramp.network import Carry
from offramp.policy import State
from offramp.runtime.rows import Rows, copy_rows, room


class Chunk:
    """Images that will be run together, at most `size` of them, with carries and states as those of `like`."""

    def __init__(self, size: int, like: Rows) -> None:
        self.size, self.filled = size, 0
        self.ids: list[Tensor] = []
        self.carry: Carry = tuple(room(tensor, size) for tensor in like.carry)
        self.state: State = tuple(room(tensor, size) for tensor in like.state)

    def put(self, rows: Rows, which: slice) -> None:
        """Take in some of the images, for which there has to be room; of another size they are refused."""
        check_size(self.carry[0].shape[1:], rows.carry[0].shape[1:])
        ids_B = rows.ids_B[which]
        places_B = None if rows.places_B is None else rows.places_B[which]
        here = slice(self.filled, self.filled + len(ids_B))
        for place, tensor in zip(self.carry, rows.carry, strict=True):
            if places_B is None:
                place[here] = tensor[which]
            else:
                copy_rows(tensor, places_B, place[here])
        for place, tensor in zip(self.state, rows.state, strict=True):
            place[here] = tensor[which]
        self.ids.append(ids_B)
        self.filled = here.stop

    def rows(self) -> Rows:
        """The images that are there; no row of the carry is another's."""
        carry, state = (tuple(tensor[: self.filled] for tensor in tensors) for tensors in (self.carry, self.state))
        return Rows(torch.cat(self.ids), carry, state)


def check_size(before: Sequence[int], new: Sequence[int]) -> None:
    """Refuse images of another size than those before."""
    if tuple(before) != tuple(new):
        raise UsageError(f"The images of a stream must all have one size; {[*before]} is followed by {[*new]}.")


class Queue:
    """Images in front of a stage, in the order in which they came, in chunks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.chunks: deque[Chunk | Rows] = deque()
        self._firsts: deque[PendingCopy] = deque()

    def __len__(self) -> int:
        return sum(chunk.filled if isinstance(chunk, Chunk) else len(chunk) for chunk in self.chunks)

    @property
    def first(self) -> int | None:
        """The id of the first image. Asking for it waits for no more of the device's work than made the id."""
        return int(self._firsts[0].read()) if self.chunks else None

    def put(self, rows: Rows) -> None:
        """Queue images. Whole chunks whose rows stand together already are not copied."""
        done = 0
        while done < len(rows):
            last = self.chunks[-1] if self.chunks else None
            if not isinstance(last, Chunk) or last.filled == self.size:
                self._firsts.append(PendingCopy(rows.ids_B[done : done + 1]))
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
        self._firsts.popleft()
        return chunk.rows() if isinstance(chunk, Chunk) else chunk
