"""Streams: survivors of successive batches wait in queues by depth, so that every segment runs on full batches.

A segment is the stages from one exit that is asked to the next. It runs when a chunk of images waits before it, the
deepest such segment first, so that less than two chunks wait anywhere but before the first. An image that would wait
too long is fetched: the segments from where it is are run on what waits there. At the end all queues are emptied, the
shallowest first.

Where the plan is to run straight on there is nothing to wait for between stages: images are gathered to a chunk, which
runs right through. A batch that is a chunk or larger is not copied then, and not held back. Images stay in their order,
so that nothing is spent on who is where: a small network would be slower than in a plain loop.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from offramp.devices import borrowed
from offramp.errors import UsageError
from offramp.runtime.chunks import Queue, check_size
from offramp.runtime.plan import Plan, Tally
from offramp.runtime.program import Program, quiet_torch
from offramp.runtime.rows import Answers, Left, Rows, room
from offramp.runtime.runner import Runner

WINDOW = 32  # chunks
CHUNK = 64  # images, where the plan has none


class Queues:
    """The images under way in a stream. Stages are run on the plan's chunk.

    An image is fetched when so many as the window have come in after it.
    """

    def __init__(self, runner: Runner, plan: Plan, window: int | None, tally: Tally | None) -> None:
        self.runner, self.plan, self.tally = runner, plan, tally
        self.chunk = plan.chunk or CHUNK
        self.window = _window(window, self.chunk)
        self.segments = runner.segments(plan)
        self.waiting = [Queue(self.chunk) for _ in self.segments]  # before each segment
        self.seen = 0  # images that have come in

    @torch.inference_mode()
    def put(self, images_BCHW: Tensor) -> None:
        """Take in images, before `run`; their ids go on from those before."""
        if len(images_BCHW) == 0:
            return
        with quiet_torch(self.runner.program):
            carry = self.runner.program.enter(images_BCHW)
            ids_B = torch.arange(self.seen, self.seen + len(images_BCHW))
            self.seen += len(images_BCHW)
            self.waiting[0].put(Rows(ids_B.to(carry[0].device), carry))

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


class _Gathered:
    """The next images of a stream that is run straight on, in one piece of memory, at most `size` of them."""

    def __init__(self, program: Program, size: int) -> None:
        self.program, self.size = program, size
        self.room_BCHW: Tensor | None = None
        self.filled = 0

    def takes(self, images_BCHW: Tensor) -> bool:
        """Whether they are of the type of those that are there; in another, their numbers would be rounded."""
        return self.room_BCHW is None or self.room_BCHW.dtype == images_BCHW.dtype

    @torch.inference_mode()
    def put(self, images_BCHW: Tensor, first: int) -> int:
        """Copy images from the position `first` on, as far as there is room; the position of the next."""
        end = min(first + self.size - self.filled, len(images_BCHW))
        filled = self.filled + end - first
        with quiet_torch(self.program):
            images_BCHW = borrowed(images_BCHW[first:end], self.program.device)
            if self.room_BCHW is None:
                self.room_BCHW = room(images_BCHW, self.size)
            self.room_BCHW[self.filled : filled] = images_BCHW
        self.filled = filled
        return end

    def take(self) -> Tensor:
        """The images that are there, one or more; it is empty then."""
        assert self.room_BCHW is not None
        images_BCHW, self.room_BCHW, self.filled = self.room_BCHW[: self.filled], None, 0
        return images_BCHW


def _straight_on(
    runner: Runner, batches: Iterable[Tensor], window: int | None, tally: Tally | None
) -> Iterator[Answers]:
    """The answers of some images at a time, all in order, on the CPU."""
    straight, chunk = runner.straight(None), runner.stream_plan.chunk or CHUNK
    window = _window(window, chunk)
    gathered = _Gathered(runner.program, chunk)

    def answered(images_BCHW: Tensor) -> Answers:
        return _on_cpu(straight(images_BCHW, tally))

    for images_BCHW in batches:
        is_whole = len(images_BCHW) >= chunk
        if gathered.filled and (is_whole or not gathered.takes(images_BCHW)):
            yield answered(gathered.take())
        if is_whole:
            yield answered(images_BCHW)
            continue
        done = 0
        while done < len(images_BCHW):
            done = gathered.put(images_BCHW, done)
            if gathered.filled == chunk:
                yield answered(gathered.take())
        if gathered.filled > window:
            yield answered(gathered.take())
    if gathered.filled:
        yield answered(gathered.take())


def _window(window: int | None, chunk: int) -> int:
    if window is not None and window < 1:
        raise UsageError(f"window must be at least 1, not {window}.")
    return WINDOW * chunk if window is None else window


def _of_one_size(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, as long as their images have one size."""
    size: torch.Size | None = None
    for images_BCHW in batches:
        if len(images_BCHW):
            size = images_BCHW.shape[1:] if size is None else size
            check_size(size, images_BCHW.shape[1:])
        yield images_BCHW


def _on_cpu(answers: Answers) -> Answers:
    return Answers(*(column_B.cpu() for column_B in answers))


def as_ready(
    runner: Runner, batches: Iterable[Tensor], *, window: int | None = None, tally: Tally | None = None
) -> Iterator[tuple[Tensor, Answers]]:
    """Positions `[B]` (int64, counted over the whole stream) and answers of images, as soon as they are there."""
    if runner.program.image_shape is None:  # else the program checks
        batches = _of_one_size(batches)
    if runner.stream_plan.straight:
        first = 0
        for answers in _straight_on(runner, batches, window, tally):
            yield torch.arange(first, first + len(answers.labels_B)), answers
            first += len(answers.labels_B)
        return
    queues = Queues(runner, runner.stream_plan, window, tally)
    for images_BCHW in batches:
        queues.put(images_BCHW)
        for left in queues.run():
            yield left.ids_B.cpu(), _on_cpu(left.answers)
    for left in queues.drain():
        yield left.ids_B.cpu(), _on_cpu(left.answers)


def in_turn(
    runner: Runner, batches: Iterable[Tensor], *, window: int | None = None, tally: Tally | None = None
) -> Iterator[Answers]:
    """The answers of each batch, on the CPU, batch by batch in order, as soon as it and those before are complete."""
    sizes: deque[int] = deque()

    def counted() -> Iterator[Tensor]:
        for images_BCHW in batches:
            sizes.append(len(images_BCHW))
            yield images_BCHW

    none = _on_cpu(runner.nothing())
    shelf = _InOrder(none) if runner.stream_plan.straight else _Shelf(none)
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


class _InOrder:
    """The same for answers that come in the order of their images: those from `first` on are not delivered yet."""

    def __init__(self, none: Answers) -> None:
        self.answers, self.first = none, 0

    def put(self, positions_B: Tensor, answers: Answers) -> None:
        if not self.holds(1):
            self.answers = answers
        else:
            pairs = zip(self.answers, answers, strict=True)
            self.answers = Answers(*(torch.cat([held_B[self.first :], new_B]) for held_B, new_B in pairs))
        self.first = 0

    def holds(self, size: int) -> bool:
        return self.first + size <= len(self.answers.labels_B)

    def take(self, size: int) -> Answers:
        first, self.first = self.first, self.first + size
        return Answers(*(column_B[first : self.first].clone() for column_B in self.answers))
