"""How long the stages and exits of an engine take, each by itself, for a few numbers of rows.

B images of a batch, K exits, S images, R numbers of rows.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from offramp.runtime.choice import TimeTable
from offramp.runtime.rows import Rows
from offramp.runtime.runner import Runner
from offramp.runtime.timing import kernels_kept

UNMET = (5, 7, 11, 13, 19)  # numbers of rows that are none of `SIZES`


def batches_of(images_SCHW: Tensor, size: int) -> list[Tensor]:
    """Whole batches of one size; where there are too few images, they come again."""
    wanted = max(len(images_SCHW) // size, 1) * size
    return list(torch.split(images_SCHW[torch.arange(wanted) % len(images_SCHW)], size))


@torch.inference_mode()
def time_table(runner: Runner, images_SCHW: Tensor, most: int, seconds: float) -> TimeTable:
    """Times of a runner's stages and exits for 1, 2, 4 ... up to `most` rows, as far as the time allows."""
    rows: list[int] = []
    passes: dict[int, list[list[list[float]]]] = {}
    size, end = 1, time.perf_counter() + seconds
    while size <= most:
        began = time.perf_counter()
        passes[size] = _passes(runner, batches_of(images_SCHW, size)[0], (end - began) / 12)
        took = time.perf_counter() - began
        rows.append(size)
        size *= 2
        if size > 8 and time.perf_counter() + 4 * took > end:
            break
    for size in rows:  # once more, for what the machine did meanwhile
        passes[size] += _passes(runner, batches_of(images_SCHW, size)[0], (end - time.perf_counter()) / 12)
    medians = [
        [[*map(median, zip(*of_part, strict=True))] for of_part in zip(*passes[size], strict=True)] for size in rows
    ]
    enter_R, stages_KR, heads_KR, drops_KR, parts_R = (_by_rows(of_part) for of_part in zip(*medians, strict=True))
    modules = zip(runner.network.stages, runner.network.exits, strict=True)
    capacity = kernels_kept(runner.program.device) if runner.program.form.backend == "torch" else None
    unmet = [size for size in UNMET if size <= max(most, UNMET[0])]
    return TimeTable(
        rows_R=tuple(rows),
        enter_R=enter_R[0],
        stages_KR=stages_KR,
        heads_KR=heads_KR,
        drops_KR=drops_KR,
        parts_R=tuple(median(of_exits) for of_exits in zip(*parts_R, strict=True)),
        # Where kernels are not forgotten, none is made again, and a library would compile for nothing.
        builds_K=(0.0,) * runner.num_exits
        if capacity is None
        else _builds(runner, [batches_of(images_SCHW, size)[0] for size in unmet]),
        kernels_K=tuple(_kernels(stage) + _kernels(head) for stage, head in modules),
        capacity=capacity,
    )


def _builds(runner: Runner, batches: Sequence[Tensor]) -> tuple[float, ...]:
    """How much longer each stage takes for a number of rows that it has not met."""
    lost = []
    for batch in batches:
        (_, cold_K, *_), (_, warm_K, *_) = (_one_pass(runner, batch) for _ in range(2))
        lost.append([max(0.0, cold - warm) for cold, warm in zip(cold_K, warm_K, strict=True)])
    return tuple(median(of_batches) for of_batches in zip(*lost, strict=True))


def _passes(runner: Runner, images_BCHW: Tensor, seconds: float) -> list[list[list[float]]]:
    """Two passes or more, after one that is not counted."""
    _one_pass(runner, images_BCHW)
    started = time.perf_counter()
    first = _one_pass(runner, images_BCHW)
    more = int(seconds / (time.perf_counter() - started))
    return [first, *(_one_pass(runner, images_BCHW) for _ in range(min(8, max(1, more))))]


def _by_rows(ms_RK: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Times `[K, R]`. None is above that of more rows: what is, was something else that the machine did."""
    columns = zip(*ms_RK, strict=True)
    return tuple(tuple(min(ms_R[i:]) for i in range(len(ms_R))) for ms_R in columns)


def _one_pass(runner: Runner, images_BCHW: Tensor) -> list[list[float]]:
    """Milliseconds of entering, and of each stage, exit, copy of the carry and parting of those that leave."""
    clock = _Clock(runner.wait)
    carry = runner.program.enter(images_BCHW)
    enter = clock.ms()
    rows = Rows(torch.arange(len(images_BCHW), device=carry[0].device), carry)
    stages, heads, drops, parts = [], [], [], []
    for k in range(runner.num_exits):
        clock.ms()
        runner.program.segment(k, k, rows.carry, head=False)
        stages.append(clock.ms())
        passed, asked = runner.reach(k, k, rows)
        heads.append(max(0.0, clock.ms() - stages[k]))
        some_B = rows.ids_B % 2 == 1
        clock.ms()
        runner.divide(0, passed, asked._replace(takes_B=torch.zeros_like(some_B)))  # 0: the last one takes all
        dividing = clock.ms()
        runner.divide(0, passed, asked._replace(takes_B=some_B))
        parts.append(max(0.0, clock.ms() - dividing))
        heads[k] += dividing
        kept = passed.keep(rows.ids_B)
        clock.ms()
        kept.compact()
        drops.append(clock.ms())
        rows = passed
    return [[enter], stages, heads, drops, parts]


class _Clock:
    """Milliseconds from one look at it to the next."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait
        self.last = time.perf_counter()

    def ms(self) -> float:
        self.wait()
        before, self.last = self.last, time.perf_counter()
        return 1000 * (self.last - before)


def _kernels(module: nn.Module) -> int:
    return sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in module.modules())
