"""Which plan is expected to be fastest: arithmetic on measured times and on who leaves where. Nothing is run here.

B images of a batch, K exits, S images, R numbers of rows at which times were taken. All times are milliseconds.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.runtime.plan import SIZES, Plan

WORTH = 0.95  # of the time straight on, which a plan has to stay below to be taken
CHUNKS = (8, 16, 32, 64, 128)
BATCHES = 8  # of which the time is expected, at most; of single images those that differ


@dataclass(frozen=True)
class TimeTable:
    """What the parts of a network take for a number of rows: linear in between, and beyond as between the last two.

    Attributes:
        rows_R: Numbers of rows, rising.
        enter_R: Bringing images into the form's layout.
        stages_KR: Each stage.
        heads_KR: Each exit: head, confidence, who leaves.
        drops_KR: Copying so many rows of the carry after each stage.
        parts_R: Parting the images that leave at an exit from the others.
        builds_K: Making the kernels of a stage and its exit for a number of rows not met before.
        kernels_K: How many these are.
        capacity: How many kernels the device keeps; None: all.
    """

    rows_R: tuple[int, ...]
    enter_R: tuple[float, ...]
    stages_KR: tuple[tuple[float, ...], ...]
    heads_KR: tuple[tuple[float, ...], ...]
    drops_KR: tuple[tuple[float, ...], ...]
    parts_R: tuple[float, ...]
    builds_K: tuple[float, ...]
    kernels_K: tuple[int, ...]
    capacity: int | None = None


@dataclass(frozen=True, eq=False)
class Flow:
    """Who leaves where.

    Attributes:
        takes_KS: Which images each exit takes of those that reach it; the last takes all.
        open: Exits, the last aside, that may be asked.
        whole: Whether all of them are asked or none (docs/runtime.md, "The engine").
    """

    takes_KS: NDArray[np.bool_]
    open: tuple[int, ...]
    whole: bool = False

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.takes_KS)

    def exits(self, asks: Iterable[int]) -> NDArray[np.int64]:
        """The exit `[S]` each image takes where only these exits, and the last, are asked."""
        exits_S = np.full(self.takes_KS.shape[1], self.num_exits - 1)
        for k in sorted(asks, reverse=True):
            exits_S[self.takes_KS[k]] = k
        return exits_S

    def asked(self, plan: Plan) -> frozenset[int]:
        """The exits that a plan asks, the last aside."""
        if plan.straight:
            return frozenset()
        return frozenset(self.open) if plan.asks is None else frozenset(self.open) & {*plan.asks}


class Expected(NamedTuple):
    """A plan, and what a batch (of a stream: an image) is expected to take under it."""

    plan: Plan
    ms: float


@dataclass(frozen=True)
class RankedPlans:
    """The fastest plans there are in the model, the fastest first."""

    straight: tuple[Expected, ...]
    """In each chunk."""
    adaptive: tuple[Expected, ...]
    """With exits, the best for each way to round numbers of rows; none without exits."""

    @property
    def gain(self) -> float:
        """How many times as fast as straight on the best plan with exits is expected to be; 1 without exits."""
        return self.straight[0].ms / self.adaptive[0].ms if self.adaptive else 1.0

    @property
    def plan(self) -> Plan:
        """What the model says."""
        return self.adaptive[0].plan if self.gain * WORTH > 1 else self.straight[0].plan


class Model:
    """Expected times from a table and a flow, of at most so many rows."""

    def __init__(self, table: TimeTable, flow: Flow, most: int) -> None:
        self.table, self.flow = table, flow

        def dense(ms_KR: Sequence[Sequence[float]]) -> list[list[float]]:
            return [_by_rows(table.rows_R, ms_R, most) for ms_R in ms_KR]

        self.stages, self.heads, self.drops = map(dense, (table.stages_KR, table.heads_KR, table.drops_KR))
        self.enter, self.parts = dense([table.enter_R, table.parts_R])

    def batch_ms(self, plan: Plan, batch_size: int) -> float:
        """What a batch of this size is expected to take."""
        return float(self.stage_ms(plan, batch_size, self.flow.asked(plan)).sum())

    def stage_ms(self, plan: Plan, batch_size: int, heads: Iterable[int]) -> NDArray[np.float64]:
        """The same for each stage `[K]` with its exit, running the heads of these exits and of the last."""
        heads, num_exits = {*heads, self.flow.num_exits - 1}, self.flow.num_exits
        total_K, total_builds_K, met = np.zeros(num_exits), np.zeros(num_exits), set[tuple[int, int]]()
        batches = self._batches(plan, batch_size)
        for exits_B, weight in batches:
            ms_K, builds_K = self._batch(exits_B, plan, heads, met)
            total_K += weight * ms_K
            total_builds_K += weight * builds_K
        kernels = sum(self.table.kernels_K[k] * count for k, count in enumerate(_counts(met, num_exits, plan)))
        kept = math.inf if self.table.capacity is None else self.table.capacity
        # Kernels that are used in turns and of which too few are kept have to be made again and again.
        missed = max(0.0, 1 - kept / kernels) if kernels else 0.0
        means_K: NDArray[np.float64] = (total_K + missed * total_builds_K) / sum(weight for _, weight in batches)
        return means_K

    def _batches(self, plan: Plan, batch_size: int) -> list[tuple[NDArray[np.int64], int]]:
        """Batches of exits taken, each with the number of such batches."""
        exits_S = self.flow.exits(self.flow.asked(plan))
        if batch_size == 1:
            return [(np.array([exit]), int(count)) for exit, count in enumerate(np.bincount(exits_S)) if count]
        exits_S = np.resize(exits_S, max(len(exits_S) // batch_size, 1) * batch_size)
        batches = exits_S.reshape(-1, batch_size)
        return [(batches[i], 1) for i in np.unique(np.linspace(0, len(batches) - 1, BATCHES).astype(int))]

    def _batch(
        self, exits_B: NDArray[np.int64], plan: Plan, heads: set[int], met: set[tuple[int, int]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times `[K]` of one batch, and of making the kernels it uses; `met` gets the stages and numbers of rows."""
        last = self.flow.num_exits - 1
        ms_K, builds_K = np.zeros(last + 1), np.zeros(last + 1)
        ms_K[0] = self.enter[len(exits_B)]
        waiting = [(exits_B, len(exits_B))]
        for k in range(last + 1):
            pieces, moving = self._pieces(waiting, plan, k)
            ms_K[k] += moving
            waiting = []
            for exits_B, run in pieces:
                ms_K[k] += self.stages[k][run] + (self.heads[k][run] if k in heads else 0.0)
                builds_K[k] += self.table.builds_K[k]
                met.add((k, run))
                staying_B = exits_B[exits_B > k]
                if 0 < len(staying_B) < len(exits_B):
                    ms_K[k] += self.parts[len(exits_B)]
                if len(staying_B):
                    waiting.append((staying_B, run))
            if not waiting:
                break
        return ms_K, builds_K

    def _pieces(
        self, waiting: list[tuple[NDArray[np.int64], int]], plan: Plan, k: int
    ) -> tuple[list[tuple[NDArray[np.int64], int]], float]:
        """What stage k is given, images and rows, and what moving them takes: as the engine does it."""
        if plan.straight and k > 0:  # each chunk runs right through
            return waiting, 0.0
        most, copy = plan.chunk, self.drops[max(k - 1, 0)]
        if len(waiting) == 1 and (most is None or waiting[0][1] <= most):
            exits_B, run = waiting[0]
            size = plan.rows(len(exits_B))
            drops = plan.compacts is None or k - 1 in plan.compacts
            return ([(exits_B, size)], copy[size]) if drops and size < run else (waiting, 0.0)
        ms = sum(copy[len(exits_B)] for exits_B, run in waiting if len(exits_B) < run)
        together_B = np.concatenate([exits_B for exits_B, _ in waiting])
        ms += copy[len(together_B)] if len(waiting) > 1 else 0.0
        most = most or len(together_B)
        pieces = []
        for first in range(0, len(together_B), most):
            piece_B = together_B[first : first + most]
            size = len(piece_B) if plan.straight else max(len(piece_B), plan.rows(len(piece_B)))
            ms += copy[size] if size > len(piece_B) else 0.0
            pieces.append((piece_B, size))
        return pieces, ms

    def stream_ms(self, plan: Plan, heads: Iterable[int]) -> NDArray[np.float64]:
        """What each stage `[K]` with its exit takes per image of a long stream, running these heads and the last."""
        chunk, last = plan.chunk or 64, self.flow.num_exits - 1
        heads = {*heads, last}
        exits_S = self.flow.exits(self.flow.asked(plan))
        ms_K = np.zeros(last + 1)
        ms_K[0] = self.enter[chunk] / chunk
        moved = False  # whether rows have been dropped, so that the stage's chunks are put together anew
        for k in range(last + 1):
            share = float((exits_S >= k).mean())
            ms = self.stages[k][chunk] + (self.drops[k - 1][chunk] if moved else 0.0)
            if k in heads:
                ms += self.heads[k][chunk]
                staying = float((exits_S > k).mean()) / share if share else 1.0
                if 0 < staying < 1:
                    ms += self.parts[chunk] + self.drops[k][round(staying * chunk)]
                    moved = True
            ms_K[k] += share * ms / chunk
        return ms_K


def _counts(met: set[tuple[int, int]], num_exits: int, plan: Plan) -> list[int]:
    """Different numbers of rows of each stage `[K]`; where none is rounded, all between the least and the most met."""
    rows = [sorted(run for stage, run in met if stage == k) for k in range(num_exits)]
    return [len(runs) if plan.sizes or not runs else runs[-1] - runs[0] + 1 for runs in rows]


def _by_rows(rows_R: Sequence[int], ms_R: Sequence[float], most: int) -> list[float]:
    """Times for 0 to `most` rows."""
    rows = np.arange(most + 1)
    ms = np.interp(rows, rows_R, ms_R)
    slope = ms_R[-1] / rows_R[-1]
    if len(rows_R) > 1:
        slope = max(0.0, (ms_R[-1] - ms_R[-2]) / (rows_R[-1] - rows_R[-2]))
    beyond = rows > rows_R[-1]
    ms[beyond] = ms_R[-1] + slope * (rows[beyond] - rows_R[-1])
    ms[0] = 0.0
    return [float(value) for value in ms]


def choose(table: TimeTable, flow: Flow, batch_size: int) -> RankedPlans:
    """The plans that are expected to be fastest for batches of one size."""
    model = Model(table, flow, max(batch_size, *CHUNKS))
    chunks = [max(batch_size, 64), *(chunk for chunk in CHUNKS if chunk < min(batch_size, max(table.rows_R) + 1))]
    straight = _fastest((Plan(straight=True, chunk=chunk) for chunk in chunks), lambda p: model.batch_ms(p, batch_size))
    best: dict[tuple[int, ...], Expected] = {}
    fastest: Plan | None = None
    for chunk in dict.fromkeys([straight[0].plan.chunk, *chunks]):
        for sizes in _roundings(min(batch_size, chunk or batch_size), chunk):
            start = Plan(sizes=sizes, chunk=chunk)
            starts = _starts(flow, start) if fastest is None else [replace(fastest, sizes=sizes, chunk=chunk)]
            best_here = _best_exits(starts, flow, lambda p: model.batch_ms(p, batch_size))
            if best_here is not None:
                kind = sizes if batch_size > 1 else ()
                best[kind] = min((best_here, best.get(kind, best_here)), key=lambda e: e.ms)
                fastest = best_here.plan
    return RankedPlans(straight, tuple(sorted(best.values(), key=lambda e: e.ms)))


def choose_stream(table: TimeTable, flow: Flow, batch_size: int) -> RankedPlans:
    """The same for a long stream of such batches; times are per image.

    Straight on, a chunk of one batch is always among them, a plain loop, also where no time was taken of so many rows.
    """
    model = Model(table, flow, max(*CHUNKS, batch_size))
    chunks = [chunk for chunk in CHUNKS if chunk <= max(table.rows_R)] or [CHUNKS[0]]

    def ms(plan: Plan) -> float:
        return float(model.stream_ms(plan, flow.asked(plan)).sum())

    straight = _fastest((Plan(straight=True, chunk=chunk) for chunk in sorted({*chunks, batch_size})), ms)
    adaptive = (_best_exits(_starts(flow, Plan(chunk=chunk)), flow, ms, compacting=False) for chunk in chunks)
    return RankedPlans(straight, tuple(sorted(filter(None, adaptive), key=lambda e: e.ms)))


def exit_ms(table: TimeTable, flow: Flow, plan: Plan, batch_size: int | None) -> tuple[float, ...]:
    """Milliseconds per image that leaves at each exit, were all exits asked, so that a batch's images sum to its time.

    Later stages are as full as the flow has it. Without a size of batches, in a stream.
    """
    plan = replace(plan, asks=None, compacts=None, straight=False)
    size = batch_size or 1
    model, heads = Model(table, flow, max(size, *CHUNKS)), range(flow.num_exits)
    ms_K = model.stream_ms(plan, heads) if batch_size is None else model.stage_ms(plan, size, heads)
    exits_S = flow.exits(flow.asked(plan))
    total, times = 0.0, []
    for k, ms in enumerate(ms_K):
        reach = size * float((exits_S >= k).mean())
        total += float(ms) / reach if reach else model.stages[k][1] + model.heads[k][1]
        times.append(total)
    return tuple(times)


def _fastest(plans: Iterable[Plan], ms: Callable[[Plan], float]) -> tuple[Expected, ...]:
    return tuple(sorted((Expected(plan, ms(plan)) for plan in plans), key=lambda e: e.ms))


def _roundings(most: int, chunk: int | None) -> list[tuple[int, ...]]:
    """Ways to round numbers of rows up to `most` to few: by halves, by quarters, finely, not at all."""
    larger = tuple(size for size in SIZES if size > most and size <= (chunk or size))
    ways = [tuple(sorted({math.ceil(most / step**i) for i in range(most.bit_length())})) for step in (2, 4)]
    finely = tuple(sorted({*(size for size in SIZES if size < most), most}))
    return list(dict.fromkeys([*((*way, *larger) for way in (*ways, finely)), ()]))


def _starts(flow: Flow, plan: Plan) -> list[Plan]:
    """Where the search for exits begins: all of them, and each one alone."""
    if not flow.open:
        return []
    return [plan] if flow.whole else [plan, *(replace(plan, asks=(k,)) for k in flow.open)]


def _best_exits(
    starts: Iterable[Plan], flow: Flow, ms: Callable[[Plan], float], *, compacting: bool = True
) -> Expected | None:
    """The best exits to ask and to compact after: from each start, one step at a time while it helps."""
    timed = functools.cache(lambda plan: Expected(plan, ms(plan)))
    ends = []
    for start in starts:
        here = timed(start)
        while True:
            best = min(map(timed, _neighbours(here.plan, flow, compacting)), key=lambda e: e.ms, default=here)
            if best.ms >= here.ms:
                break
            here = best
        ends.append(here)
    return min(ends, key=lambda e: e.ms, default=None)


def _neighbours(plan: Plan, flow: Flow, compacting: bool) -> list[Plan]:
    """Plans with an exit more or less, a compaction, or both at one exit."""
    last = flow.num_exits - 1
    asks = frozenset(flow.open) if plan.asks is None else frozenset(plan.asks)
    drops = frozenset(range(last)) if plan.compacts is None else frozenset(plan.compacts)
    pairs = [(asks, drops ^ {k}) for k in range(last) if compacting]
    if not flow.whole:
        pairs += [(asks ^ {k}, drops) for k in flow.open]
        pairs += [(asks ^ {k}, drops ^ {k}) for k in flow.open if compacting]
    every = frozenset(range(last))
    return [
        replace(
            plan,
            asks=None if asks == frozenset(flow.open) else tuple(sorted(asks)),
            compacts=None if drops == every else tuple(sorted(drops)),
        )
        for asks, drops in pairs
        if asks
    ]
