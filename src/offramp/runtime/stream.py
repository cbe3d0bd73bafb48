"""Streams: survivors of successive batches wait in queues by depth, so that every segment runs on full batches.

A segment is the stages from one exit that is asked to the next. It runs when a chunk of images waits before it, the
deepest such segment first, so that less than two chunks wait anywhere but before the first. An image that would wait
too long is fetched: the segments from where it is are run on what waits there. At the end all queues are emptied, the
shallowest first.

Where the plan is to run straight on there is nothing to wait for between stages: images are gathered to a chunk, which
runs right through. A batch that is a chunk or larger is not copied then, and not held back.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.runtime.chunks import Queue, check_size
from offramp.runtime.plan import Plan, Tally
from offramp.runtime.program import quiet_torch
from offramp.runtime.rows import Answers, Left, Rows
from offramp.runtime.runner import Runner

WINDOW = 32  # chunks


class Queues:
    """The images under way in a stream. Stages are run on the plan's chunk; on 64 where it has none.

    An image is fetched when so many as the window have come in after it.
    """

    def __init__(self, runner: Runner, plan: Plan, window: int | None, tally: Tally | None) -> None:
        self.runner, self.plan, self.tally = runner, plan, tally
        self.straight = runner.straight(None) if plan.straight else None
        self.chunk = plan.chunk or 64
        self.window = WINDOW * self.chunk if window is None else window
        if self.window < 1:
            raise UsageError(f"window must be at least 1, not {window}.")
        self.segments = runner.segments(plan)
        self.waiting = [Queue(self.chunk) for _ in self.segments]  # before each segment
        self.whole: Rows | None = None  # a batch that waits for nothing: straight on, and a chunk by itself
        self.seen = 0  # images that have come in

    @torch.inference_mode()
    def put(self, images_BCHW: Tensor) -> None:
        """Take in images, before `run`; their ids go on from those before."""
        if len(images_BCHW) == 0:
            return
        is_whole = self.straight is not None and len(images_BCHW) >= self.chunk
        with quiet_torch(self.runner.program):
            carry = (images_BCHW,) if is_whole else self.runner.program.enter(images_BCHW)
            ids_B = torch.arange(self.seen, self.seen + len(images_BCHW))
            self.seen += len(images_BCHW)
            rows = Rows(ids_B.to(carry[0].device), carry)
            if is_whole:
                self.whole = rows
            else:
                self.waiting[0].put(rows)

    @torch.inference_mode()
    def run(self) -> Iterator[Left]:
        """Run every segment before which a chunk waits, and fetch images that have waited too long."""
        while True:
            full = [number for number, queue in enumerate(self.waiting) if len(queue) >= self.chunk]
            if full:
                yield from self._step(full[-1])
            elif (late := self._late()) is not None:
                yield from self._step(late)
            else:
                break
        if self.whole is not None:
            whole, self.whole = self.whole, None
            yield from self.drain()
            yield self._through(whole)

    @torch.inference_mode()
    def drain(self) -> Iterator[Left]:
        """Run everything that is under way."""
        for number, queue in enumerate(self.waiting):
            while len(queue):
                yield from self._step(number)

    def _late(self) -> int | None:
        """A segment before which an image waits that came in before the window, the shallowest such."""
        for number, queue in enumerate(self.waiting):
            if queue.first is not None and self.seen - queue.first > self.window:
                return number
        return None

    def _step(self, number: int) -> Iterator[Left]:
        if self.straight is not None:
            yield self._through(self.waiting[number].take())
            return
        with quiet_torch(self.runner.program):
            rows = self.waiting[number].take()
            rows = rows.compact(self.plan.rows(len(rows)))
            left, onward = self.runner.advance(*self.segments[number], rows, self.tally)
            if onward is not None:
                self.waiting[number + 1].put(onward)
        if left is not None:
            if self.tally is not None:
                self.tally.answer(left.answers.exits_B)
            yield left

    def _through(self, rows: Rows) -> Left:
        assert self.straight is not None
        return Left(rows.ids_B, self.straight(rows.carry[0], self.tally))


def as_ready(
    runner: Runner, batches: Iterable[Tensor], *, window: int | None = None, tally: Tally | None = None
) -> Iterator[tuple[Tensor, Answers]]:
    """Positions `[B]` (int64, counted over the whole stream) and answers of images, as soon as they are there."""
    queues = Queues(runner, runner.stream_plan, window, tally)
    size: torch.Size | None = None
    for images_BCHW in batches:
        if len(images_BCHW) and runner.program.image_shape is None:  # else the program looks
            size = images_BCHW.shape[1:] if size is None else size
            check_size(size, images_BCHW.shape[1:])
        queues.put(images_BCHW)
        for left in queues.run():
            yield _on_cpu(left)
    for left in queues.drain():
        yield _on_cpu(left)


def _on_cpu(left: Left) -> tuple[Tensor, Answers]:
    return left.ids_B.cpu(), Answers(*(column_B.cpu() for column_B in left.answers))


def in_turn(
    runner: Runner, batches: Iterable[Tensor], *, window: int | None = None, tally: Tally | None = None
) -> Iterator[Answers]:
    """The answers of each batch, on the CPU, batch by batch in order, as soon as it and those before are complete."""
    sizes: deque[int] = deque()

    def counted() -> Iterator[Tensor]:
        for images_BCHW in batches:
            sizes.append(len(images_BCHW))
            yield images_BCHW

    none = Answers(*(column_B.cpu() for column_B in runner.nothing()))
    shelf = _Shelf(none)
    for positions_B, answers in as_ready(runner, counted(), window=window, tally=tally):
        shelf.put(positions_B, answers)
        while sizes and shelf.holds(sizes[0]):
            yield shelf.take(sizes.popleft())
    for size in sizes:  # batches without images: nothing arrives after which they would be delivered
        yield shelf.take(size)


class _Shelf:
    """Answers that are not delivered yet, by position; `first` is the position of the first of them.

    `none` are the answers for no images.
    """

    def __init__(self, none: Answers) -> None:
        self.none = none
        self.first = 0
        self.there_B = torch.zeros(0, dtype=torch.bool)
        self.columns: list[Tensor] = []

    def put(self, positions_B: Tensor, answers: Answers) -> None:
        if not self.columns:
            self.columns = [column_B.new_empty(0) for column_B in answers]
        places_B = positions_B - self.first
        missing = int(places_B.max()) + 1 - len(self.there_B)
        if missing > 0:
            self.there_B, *self.columns = (
                torch.cat([column_B, column_B.new_zeros(max(missing, len(column_B)))])
                for column_B in (self.there_B, *self.columns)
            )
        self.there_B[places_B] = True
        for column_B, values_B in zip(self.columns, answers, strict=True):
            column_B[places_B] = values_B

    def holds(self, size: int) -> bool:
        """Whether the next `size` answers are all there."""
        return size <= len(self.there_B) and bool(self.there_B[:size].all())

    def take(self, size: int) -> Answers:
        """The next `size` answers."""
        if not self.columns:
            return self.none
        taken = Answers(*(column_B[:size].clone() for column_B in self.columns))
        self.there_B, *self.columns = (column_B[size:].clone() for column_B in (self.there_B, *self.columns))
        self.first += size
        return taken
