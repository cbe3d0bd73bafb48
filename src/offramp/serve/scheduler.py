"""The scheduler: one thread that runs segments on the images that wait, and answers each of them once.

Every image that was accepted is answered, or refused with a reason, exactly once, unless its client took it back.
Places are bounded: an image keeps its own from `submit` until it is answered, and one that runs on for the guard until
it has.
"""

import heapq
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from offramp.checks import check_number, check_whole
from offramp.errors import UsageError
from offramp.serve.contract import RefusedError, Request, Schedules, Served, Snapshot
from offramp.serve.lane import Lane, Outcome, Ticket
from offramp.serve.model import Model
from offramp.serve.overload import Pace, Rungs


def end_process(error: BaseException) -> None:
    """Say why on standard error, and end: what supervises the process starts it again."""
    print("The scheduler has failed; the server ends.", file=sys.stderr)
    traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


AUDITS = 8  # images that run on for the guard take at most one in so many places


class Scheduler(Schedules):
    """A thread that runs a model on the images that are submitted.

    Args:
        model: Warmed up by the thread before it runs anything.
        max_waiting: Places: images accepted and not yet answered.
        max_wait_ms: How long an image waits between segments, in all, for others to run with.
        within_ms: Images are refused, though there are places, when answering those before them is expected to take
            longer; a full chunk is always taken in. None: places alone count.
        audit: The share of the images that leave early that run on to the end, for the guards.
        safe_on_alarm: Whether all images run to the end once a guard has raised its alarm.
        on_crash: Called in the thread with what ended it.
        on_batch: Called by the thread after each segment: its first stage (from 0), images in it, seconds.
        clock: Seconds; that of deadlines.
        start: Whether to start the thread; without it, `turn` does its work.

    Raises:
        UsageError: Numbers that make no sense.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_waiting: int = 256,
        max_wait_ms: float = 2.0,
        within_ms: float | None = None,
        audit: float = 0.0,
        safe_on_alarm: bool = False,
        on_crash: Callable[[BaseException], None] = end_process,
        on_batch: Callable[[int, int, float], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        start: bool = True,
    ) -> None:
        check_whole("max_waiting", max_waiting, 1)
        check_number("max_wait_ms", max_wait_ms, "of at least 0", lambda value: value >= 0)
        if within_ms is not None:
            check_number("within_ms", within_ms, "above 0", lambda value: value > 0)
        check_number("audit", audit, "from 0 to 1", lambda value: 0 <= value <= 1)
        self._max_waiting, self._max_wait, self._safe_on_alarm = max_waiting, max_wait_ms / 1000, safe_on_alarm
        self._within = None if within_ms is None else within_ms / 1000
        self._audit, self._random = audit, random.Random()
        self._on_crash, self._on_batch, self._clock = on_crash, on_batch, clock
        # Reentrant, because callbacks are called under it: a client that takes its image back is not called after that.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._lanes = [self._lane(model)]  # the last one takes in; those before are emptied first
        self._rungs = Rungs(len(model.served.ladder))
        self._pace = Pace(clock())
        self._deadlines: list[tuple[float, int, Ticket, Lane]] = []
        self._numbers = 0
        self._drains_until: float | None = None
        self._is_over = self._is_warm = False
        self._all_answered = True
        self._threads = torch.get_num_threads()  # a new thread has its own number of them
        self._thread = threading.Thread(target=self._main, name="offramp-scheduler", daemon=True)
        if start:
            self._thread.start()

    def _lane(self, model: Model) -> Lane:
        return Lane(model, max_wait=self._max_wait, is_audited=self._is_audited, safe_on_alarm=self._safe_on_alarm)

    @property
    def served(self) -> Served:
        """See `Schedules.served`."""
        return self._lanes[-1].model.served

    @property
    def model(self) -> Model:
        """What answers new requests."""
        return self._lanes[-1].model

    def refusal(self, before: int = 0) -> RefusedError | None:
        """See `Schedules.refusal`."""
        if self._drains_until is not None or self._is_over:
            return RefusedError("The server is about to end and takes no more images.", "draining")
        places, taken = self._places(), self._taken() + before
        if taken < places:
            return None
        # Until all that wait now will have been answered: sooner, all who were refused would find it full again.
        capacity = self._pace.capacity
        return RefusedError(f"All {places} places are taken.", "full", taken / capacity if capacity else 1.0)

    def submit(self, request: Request) -> Callable[[], None]:
        """See `Schedules.submit`.

        Raises:
            RefusedError: No place, the server drains, or the image was prepared for a model that has been replaced.
            UsageError: An image of another shape than the model's, or no float32; a rung below 1.
        """
        with self._lock:
            lane, now = self._lanes[-1], self._clock()
            served, shape = lane.model.served, tuple(request.image_CHW.shape)
            if (refusal := self.refusal()) is not None:
                raise refusal
            if request.fingerprint not in (None, served.fingerprint):
                raise RefusedError("The model was replaced while the image was prepared; prepare it again.", "replaced")
            if shape != served.image_shape or request.image_CHW.dtype != torch.float32:
                raise UsageError(
                    f"Images must be float32 of shape {served.image_shape}, not {request.image_CHW.dtype} of {shape}."
                )
            if request.rung < 1:
                raise UsageError(f"Rungs count from 1; {request.rung} is none.")
            rung = min(max(request.rung, self._rungs.at(self._taken() / self._places(), now)), len(served.ladder))
            self._numbers += 1
            ticket = Ticket(request, self._numbers, now, rung)
            lane.add(ticket)
            if request.deadline is not None:
                if len(self._deadlines) > 4 * self._max_waiting:  # most of them are gone
                    self._deadlines = [one for one in self._deadlines if not one[2].is_gone]
                    heapq.heapify(self._deadlines)
                heapq.heappush(self._deadlines, (ticket.deadline, ticket.number, ticket, lane))
            self._changed.notify_all()
        return lambda: self._cancel(lane, ticket)

    def snapshot(self) -> Snapshot:
        """See `Schedules.snapshot`."""
        with self._lock:
            now, places = self._clock(), self._places()
            waiting = [lane.waiting() for lane in self._lanes]
            exits = max(map(len, waiting))
            return Snapshot(
                waiting_K=tuple(sum(one[k] for one in waiting if k < len(one)) for k in range(exits)),
                capacity=places,
                rung=min(self._rungs.at(self._taken() / places, now), len(self.served.ladder)),
                rate=self._pace.rate(now),
                is_ready=self._is_warm and self._drains_until is None and not self._is_over and self._taken() < places,
                alarm=self._lanes[-1].alarm,
            )

    def replace(self, model: Model) -> None:
        """Serve another model from now on; what was accepted before is answered by the one before.

        Returns once it is warm and has taken over. Its errors are raised here, and the old one is served on.
        """
        model.warm_up()
        with self._lock:
            self._lanes.append(self._lane(model))
            self._rungs = Rungs(len(model.served.ladder))
            self._retire()

    def drain(self, seconds: float) -> bool:
        """See `Schedules.drain`. The thread has ended when this returns."""
        with self._lock:
            until = self._clock() + seconds
            self._drains_until = until if self._drains_until is None else min(self._drains_until, until)
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        return self._all_answered

    def _places(self) -> int:
        """How many images may be under way: `max_waiting`, or as many as are answered `within_ms`."""
        capacity = self._pace.capacity
        if self._within is None or capacity is None:
            return self._max_waiting
        return min(self._max_waiting, max(self._lanes[-1].chunk, round(self._within * capacity)))

    def _taken(self) -> int:
        """Places that are taken."""
        return sum(lane.under_way + lane.num_audits for lane in self._lanes)

    def _is_audited(self, lane: Lane, ticket: Ticket) -> bool:
        return (
            lane.model.guards[ticket.rung - 1] is not None
            and lane is self._lanes[-1]
            and lane.num_audits < max(1, self._max_waiting // AUDITS)
            and self._drains_until is None
            and self._random.random() < self._audit
        )

    def _main(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            while not self._is_over:
                if not self.turn():
                    with self._changed:
                        while not self._taken() and self._drains_until is None:
                            self._changed.wait()
        except BaseException as error:
            self._is_over, self._all_answered = True, False
            self._on_crash(error)

    def turn(self) -> bool:
        """Run one segment, if an image waits, and answer those that leave there; the first one warms the model up.

        Returns:
            Whether anything was run.
        """
        if not self._is_warm:
            self.model.warm_up()
            self._is_warm = True
        begun = self._clock()
        with self._lock:
            now = self._clock()
            self._expire(now)
            self._end(now)
            work = next((work for lane in self._lanes if (work := lane.choose(now)) is not None), None)
            if work is None:
                return False
            work.begin(now)
        started = self._clock()
        ran = work.run()
        ended = self._clock()
        with self._lock:
            outcomes = work.lane.settle(work, ran, ended - started, ended)
            self._finish(work.lane, outcomes)
            # With what the thread waited for the other ones: under load that is as long as the segments take.
            self._pace.count(len(outcomes), self._clock() - begun, ended)
            self._rungs.at(self._taken() / self._places(), ended)
            if self._on_batch is not None:
                self._on_batch(work.first, len(work.images), ended - started)
        return True

    def _expire(self, now: float) -> None:
        """Answer the images whose time is up."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, ticket, lane = heapq.heappop(self._deadlines)
            if not ticket.is_gone:
                self._finish(lane, [lane.late(ticket, now)])

    def _end(self, now: float) -> None:
        """End, where that is wanted, once all are answered or the time for it is over."""
        if self._drains_until is None or self._is_over:
            return
        for lane in self._lanes:
            lane.drop_audits()
        if now >= self._drains_until:
            refusal = RefusedError("The server has ended before the image was answered.", "draining")
            for lane in list(self._lanes):
                remaining = [(ticket, refusal) for ticket in lane.everyone()]
                self._all_answered &= not remaining
                self._finish(lane, remaining)
        self._is_over = not self._taken()

    def _finish(self, lane: Lane, outcomes: Sequence[Outcome]) -> None:
        for ticket, outcome in outcomes:
            if not ticket.is_gone:  # a callback may have taken another image back
                self._leave(lane, ticket)
                ticket.on_done(outcome)

    def _cancel(self, lane: Lane, ticket: Ticket) -> None:
        with self._lock:
            if not ticket.is_gone:
                self._leave(lane, ticket)
                self._changed.notify_all()

    def _leave(self, lane: Lane, ticket: Ticket) -> None:
        """Free the place of an image; a model that has been replaced is let go of with its last one."""
        ticket.is_gone, ticket.image_CHW = True, None
        lane.under_way -= 1
        self._retire()

    def _retire(self) -> None:
        self._lanes = [lane for lane in self._lanes[:-1] if lane.under_way] + self._lanes[-1:]
