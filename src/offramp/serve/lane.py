"""The images under way in one model: a queue before each segment, which segment runs next, and running it.

It knows no threads and no clock: the scheduler holds its lock around everything here but `Work.run`. B images of a
segment, K exits, N classes.

Which segment runs next (`Lane.choose`):

1. The deepest but the first before which a chunk waits. So less than two chunks wait before any but the first, and
   memory is bounded.
2. That of the oldest image which has waited between segments for `max_wait` in all. Under load the first segment always
   has a full chunk, and the few images that go deep would wait until a chunk of them is there.
3. The first, if a chunk waits there.
4. That of the oldest image. The machine is never idle while an image waits: waiting for company gains nothing that
   comes not by itself, because the next images gather while this segment runs. Simulated with the times of MSDNet-7
   (docs/LOG.md, 2026-11-30), running the oldest has a shorter tail than running the first segment for newcomers to
   catch up: 10 against 13 ms at the 99th percentile at 0.5 of the capacity, 16 against 20 at 0.7.

In each queue images stand in the order in which they came, so the oldest goes first.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from offramp.runtime.chunks import Chunk
from offramp.runtime.program import quiet_torch
from offramp.runtime.rows import Rows
from offramp.serve.contract import Answer, RefusedError, Request, Step
from offramp.serve.model import Model

AUDIT_WAIT = 0.25  # seconds after which images that run on for the guard go before those that wait for an answer
HELD = 4  # chunks of rows that one queue may hold on to before it is compacted; less than two of them are images


class Ticket:
    """An accepted image on its way."""

    __slots__ = (
        "begun",
        "best",
        "came",
        "computed",
        "deadline",
        "image_CHW",
        "is_gone",
        "number",
        "on_done",
        "on_step",
        "rung",
    )

    def __init__(self, request: Request, number: int, came: float, rung: int) -> None:
        self.number, self.came, self.rung = number, came, rung
        self.image_CHW: Tensor | None = request.image_CHW  # let go of as soon as it is not needed
        self.on_done, self.on_step = request.on_done, request.on_step
        self.deadline = math.inf if request.deadline is None else request.deadline
        self.begun, self.computed = came, 0.0
        self.best: tuple[int, float, int] | None = None
        """Label, confidence and exit (from 0) of the last exit reached."""
        self.is_gone = False
        """Answered, refused or cancelled."""

    def waits_since(self) -> float:
        """When it would have begun, had it not waited between segments: the smaller, the longer it has waited there."""
        return self.begun + self.computed


class Audit:
    """An image that was answered early and runs on to the end, to see whether the last exit agrees."""

    def __init__(self, ticket: Ticket, label: int, now: float) -> None:
        self.number, self.rung, self.label, self.since = ticket.number, ticket.rung, label, now
        self.is_gone = False

    def waits_since(self) -> float:
        """When it left the segment before."""
        return self.since


T = TypeVar("T", Ticket, Audit)


class Line(Generic[T]):
    """Images before a segment other than the first, in the order in which they came."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[Rows, list[T]]] = deque()
        self._length = 0  # with those that are gone
        self._held = 0  # rows of the pieces' carries

    def __len__(self) -> int:
        return self._length

    def images(self) -> Iterable[T]:
        """Those that are not gone."""
        return (image for _, images in self._pieces for image in images if not image.is_gone)

    def oldest(self) -> T | None:
        """The first that is not gone."""
        for _, images in self._pieces:  # asked for so often that a generator costs
            for image in images:
                if not image.is_gone:
                    return image
        return None

    def put(self, rows: Rows, images: list[T], chunk: int) -> None:
        """Add images behind the others; their rows are not copied unless too many are held on to."""
        self._pieces.append((rows, images))
        self._length += len(images)
        self._held += rows.run
        if self._held > HELD * chunk and len(self._pieces) > 1:
            pieces, images = self.take(self._length)
            if images:
                rows = gather(pieces, len(images))
                self._pieces.append((rows, images))
                self._length, self._held = len(images), rows.run

    def take(self, most: int) -> tuple[list[Rows], list[T]]:
        """The first `most` that are not gone, in pieces as they were put here."""
        pieces: list[Rows] = []
        taken: list[T] = []
        while self._pieces and len(taken) < most:
            rows, images = self._pieces.popleft()
            self._length -= len(images)
            self._held -= rows.run
            alive = [place for place, image in enumerate(images) if not image.is_gone]
            now, later = alive[: most - len(taken)], alive[most - len(taken) :]
            if later:
                self._pieces.appendleft((_kept(rows, later), [images[place] for place in later]))
                self._length += len(later)
                self._held += rows.run
            if now:
                pieces.append(_kept(rows, now))
                taken += [images[place] for place in now]
        return pieces, taken


def gather(pieces: Sequence[Rows], size: int) -> Rows:
    """All images of the pieces in a carry of `size` rows; those behind are copies of the first image's."""
    if len(pieces) == 1:
        return pieces[0].compact(size)
    chunk = Chunk(size, pieces[0])
    for piece in pieces:
        chunk.put(piece, slice(len(piece)))
    images = chunk.filled
    for tensor in chunk.carry:
        tensor[images:] = tensor[:1]
    return Rows(torch.cat(chunk.ids), chunk.carry, tuple(tensor[:images] for tensor in chunk.state))


Outcome = tuple[Ticket, Answer | RefusedError]


@dataclass
class Work:
    """Images that go through one segment together.

    Attributes:
        place: Of the segment among the lane's; the exit (from 0) where an image goes alone.
        pieces: Their rows; none before the first segment.
        tensors: There, the images `[C, H, W]`.
    """

    lane: "Lane"
    place: int
    first: int
    last: int
    images: Sequence[Ticket | Audit]
    pieces: Sequence[Rows] = ()
    is_alone: bool = False
    tensors: Sequence[Tensor] = ()

    def begin(self, now: float) -> "Work":
        """Begin now."""
        if not self.pieces:
            tensors = []
            for ticket in self.images:
                assert isinstance(ticket, Ticket)
                assert ticket.image_CHW is not None
                tensors.append(ticket.image_CHW)
                ticket.begun, ticket.image_CHW = now, None
            self.tensors = tensors
        return self

    @torch.inference_mode()
    def run(self) -> "Ran":
        """Run the segment and read its exit; waits until the device is done."""
        model = self.lane.model
        program, measure = model.program, model.served.ladder[0].measure
        with quiet_torch(program):
            size = model.plan.rows(len(self.images))
            if self.pieces:
                rows = gather(self.pieces, size)
            else:
                images = [*self.tensors, *[self.tensors[0]] * (size - len(self.tensors))]
                carry = program.enter(torch.stack(images))
                rows = Rows(torch.arange(len(self.tensors), device=carry[0].device), carry)
            logits_BC, carry = program.segment(self.first, self.last, rows.carry)
            assert logits_BC is not None
            log_probs_BN = measure.log_probs(self.last, rows.of(logits_BC), program.num_classes)
            confidence_B, state = measure.confidence(log_probs_BN, rows.state)
            labels, confidences = log_probs_BN.argmax(-1).tolist(), confidence_B.tolist()
            probabilities_N = log_probs_BN[0].exp().cpu() if self.is_alone else None
        passed = Rows(rows.ids_B, carry, state, rows.places_B)
        return Ran(labels, confidences, passed, confidence_B.dtype, probabilities_N)


@dataclass
class Ran:
    """What a segment's exit says of its images, and their rows behind it."""

    labels: list[int]
    confidences: list[float]
    rows: Rows
    dtype: torch.dtype
    probabilities_N: Tensor | None


class Lane:
    """The images under way in one model.

    Args:
        max_wait: Seconds that an image waits between segments, in all, for others to run with.
        is_audited: Whether an image that leaves early runs on to the end for the guard.
        safe_on_alarm: Whether no image leaves early any more once a guard has raised its alarm.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_wait: float,
        is_audited: "Callable[[Lane, Ticket], bool]",
        safe_on_alarm: bool = False,
    ) -> None:
        self.model, self.max_wait, self.is_audited, self.safe_on_alarm = model, max_wait, is_audited, safe_on_alarm
        self.last = model.program.num_exits - 1
        self.chunk = model.chunk
        self.coming: deque[Ticket] = deque()
        self.between: list[Line[Ticket]] = [Line() for _ in model.segments[1:]]
        self.audits: list[Line[Audit]] = [Line() for _ in model.segments[1:]]
        self.alone: deque[tuple[Ticket, int, Rows | None]] = deque()
        self.num_audits = 0
        self.under_way = 0
        """Images accepted and not gone."""
        self._thresholds: dict[torch.dtype, list[list[float]]] = {}

    def add(self, ticket: Ticket) -> None:
        """Take in an image."""
        self.under_way += 1
        if ticket.on_step is None:
            self.coming.append(ticket)
        else:
            self.alone.append((ticket, 0, None))

    @property
    def alarm(self) -> str | None:
        """What a guard of the model has found."""
        return next((guard.alarm for guard in self.model.guards if guard is not None and guard.alarm), None)

    def waiting(self) -> tuple[int, ...]:
        """Images before each segment, by its first stage."""
        waiting_K = [0] * (self.last + 1)
        waiting_K[0] = sum(not ticket.is_gone for ticket in self.coming)
        for (first, _), line in zip(self.model.segments[1:], self.between, strict=True):
            waiting_K[first] = sum(1 for _ in line.images())
        for ticket, k, _ in self.alone:
            waiting_K[k] += not ticket.is_gone
        return tuple(waiting_K)

    def everyone(self) -> Iterable[Ticket]:
        """All images that wait."""
        yield from (ticket for ticket in self.coming if not ticket.is_gone)
        yield from (ticket for line in self.between for ticket in line.images())
        yield from (ticket for ticket, _, _ in self.alone if not ticket.is_gone)

    def drop_audits(self) -> None:
        """Let go of the images that run on for the guard."""
        self.audits, self.num_audits = [Line() for _ in self.audits], 0

    def choose(self, now: float) -> Work | None:
        """What runs next; None where nothing waits."""
        while self.coming and self.coming[0].is_gone:
            self.coming.popleft()
        while self.alone and self.alone[0][0].is_gone:
            self.alone.popleft()
        audit = self._oldest(self.audits) if self.num_audits else None
        if audit is not None and now - audit[1].waits_since() >= AUDIT_WAIT:
            return self._further(self.audits, audit[0])
        chosen = self._next(now)
        if chosen is not None:
            place, ticket = chosen
            if not (self.alone and self.alone[0][0].number < ticket.number):
                return self._first() if place == 0 else self._further(self.between, place)
        if self.alone:
            ticket, k, rows = self.alone.popleft()
            return Work(self, k, k, k, [ticket], [] if rows is None else [rows], is_alone=True)
        return None if audit is None else self._further(self.audits, audit[0])

    def _next(self, now: float) -> tuple[int, Ticket] | None:
        """The segment that runs next, by its place, and the oldest image before it."""
        for place in range(len(self.between), 0, -1):
            line = self.between[place - 1]
            if len(line) >= self.chunk and (ticket := line.oldest()) is not None:
                return place, ticket
        heads = [
            (ticket.number, place, ticket)
            for place, line in enumerate(self.between, 1)
            if (ticket := line.oldest()) is not None
        ]
        late = [head for head in heads if now - head[2].waits_since() >= self.max_wait]
        if self.coming and not late and (not heads or len(self.coming) >= self.chunk):
            return 0, self.coming[0]
        _, place, ticket = min(late or heads, default=(0, 0, None))
        return None if ticket is None else (place, ticket)

    @staticmethod
    def _oldest(lines: Sequence[Line[T]]) -> tuple[int, T] | None:
        """The oldest image in queues, and which segment it waits for."""
        heads = [(place, image) for place, line in enumerate(lines, 1) if (image := line.oldest()) is not None]
        return min(heads, key=lambda head: head[1].number, default=None)

    def _first(self) -> Work:
        tickets: list[Ticket] = []
        while self.coming and len(tickets) < self.chunk:
            if not (ticket := self.coming.popleft()).is_gone:
                tickets.append(ticket)
        return Work(self, 0, *self.model.segments[0], tickets)

    def _further(self, lines: Sequence[Line[Ticket]] | Sequence[Line[Audit]], place: int) -> Work:
        pieces, images = lines[place - 1].take(self.chunk)
        return Work(self, place, *self.model.segments[place], images, pieces)

    def settle(self, work: Work, ran: Ran, seconds: float, now: float) -> list[Outcome]:
        """Send the images on that do not leave, and say what becomes of the others."""
        stay: list[int] = []
        outcomes: list[Outcome] = []
        audited: list[tuple[int, Audit]] = []
        for row, (image, label, confidence) in enumerate(zip(work.images, ran.labels, ran.confidences, strict=True)):
            if image.is_gone:
                continue
            if isinstance(image, Audit):
                if work.last == self.last:
                    self._report(image, label, confidence)
                else:
                    image.since = now
                    stay.append(row)
                continue
            image.computed += seconds
            leaves = self._leaves(image, work.last, confidence, ran.dtype)
            if not math.isnan(confidence):
                image.best = label, confidence, work.last
                if image.on_step is not None and ran.probabilities_N is not None:
                    image.on_step(self._step(image, work.last, ran.probabilities_N))
            if not leaves:
                stay.append(row)
            elif math.isnan(confidence):
                outcomes.append((image, RefusedError(_NOT_FINITE, "not finite")))
            else:
                outcomes.append((image, self.answer(image, now)))
                if work.last != self.last and not work.is_alone and self.is_audited(self, image):
                    audited.append((row, Audit(image, label, now)))
        if stay and work.is_alone:
            ticket = work.images[0]
            assert isinstance(ticket, Ticket)
            self.alone.appendleft((ticket, work.place + 1, ran.rows))
        elif stay:
            images = [work.images[row] for row in stay]
            lines: Any = self.audits if isinstance(images[0], Audit) else self.between
            lines[work.place].put(_kept(ran.rows, stay), images, self.chunk)
        if audited:
            rows, audits = zip(*audited, strict=True)
            self.num_audits += len(audits)
            self.audits[work.place].put(_kept(ran.rows, rows), [*audits], self.chunk)
        return outcomes

    def answer(self, ticket: Ticket, now: float, *, in_time: bool = True) -> Answer:
        """The best answer there is."""
        assert ticket.best is not None
        label, confidence, k = ticket.best
        served, computed = self.model.served, 1000 * ticket.computed
        queued = max(1000 * (now - ticket.came) - computed, 0.0)
        operations = served.operations_K[k]
        return Answer(label, confidence, k + 1, operations, ticket.rung, in_time, queued, computed, served.fingerprint)

    def late(self, ticket: Ticket, now: float) -> Outcome:
        """What becomes of an image whose time is up."""
        if ticket.best is None:
            return ticket, RefusedError("Its time was up before the first exit.", "deadline")
        return ticket, self.answer(ticket, now, in_time=False)

    def _leaves(self, ticket: Ticket, k: int, confidence: float, dtype: torch.dtype) -> bool:
        if k == self.last:
            return True
        if self.safe_on_alarm and self.alarm is not None:
            return False
        if dtype not in self._thresholds:
            # In the precision of the confidences: so does `Policy.takes` compare.
            rungs = [policy.thresholds for policy in self.model.served.ladder]
            self._thresholds[dtype] = torch.tensor(rungs, dtype=torch.float64).to(dtype).tolist()
        return confidence >= self._thresholds[dtype][ticket.rung - 1][k]

    def _step(self, ticket: Ticket, k: int, probabilities_N: Tensor) -> Step:
        assert ticket.best is not None
        label, confidence, _ = ticket.best
        served = self.model.served
        threshold = None if k == self.last else served.ladder[ticket.rung - 1].thresholds[k]
        return Step(k + 1, label, confidence, threshold, probabilities_N, served.operations_K[k])

    def _report(self, audit: Audit, label: int, confidence: float) -> None:
        audit.is_gone = True
        self.num_audits -= 1
        guard = self.model.guards[audit.rung - 1]
        if guard is not None and not math.isnan(confidence):
            guard.observe(label != audit.label)


Audited = Callable[[Lane, Ticket], bool]
_NOT_FINITE = "The network gives logits for this image that are not finite."


def _kept(rows: Rows, which: Sequence[int]) -> Rows:
    """The images at these places."""
    return rows if len(which) == len(rows) else rows.keep(torch.tensor(which, device=rows.ids_B.device))
