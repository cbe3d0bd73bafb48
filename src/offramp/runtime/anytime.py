"""Answers exit by exit, and the best ones there are when time is up.

B images of a batch. Every exit is asked here, also where the policy lets none leave: that may be the last answer.
"""

import contextlib
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.runtime.plan import Tally
from offramp.runtime.program import quiet_torch
from offramp.runtime.rows import Answers, Rows
from offramp.runtime.runner import Runner


def until(
    runner: Runner, images_BCHW: Tensor, deadline_ms: float, clock: Callable[[], float], tally: Tally | None
) -> Answers:
    """See `Engine.anytime`."""
    if not isinstance(deadline_ms, (int, float)) or not deadline_ms >= 0:  # NaN is not
        raise UsageError(f"deadline_ms must be a number of at least 0, not {deadline_ms!r}.")
    end = clock() + deadline_ms / 1000
    best = runner.nothing()
    with contextlib.closing(each_exit(runner, images_BCHW, tally)) as exits:
        for best in exits:  # noqa: B007  the last one is the answer
            runner.wait()
            if clock() >= end:
                break
    return best


@torch.inference_mode()
def each_exit(runner: Runner, images_BCHW: Tensor, tally: Tally | None) -> Generator[Answers]:
    """See `Engine.each_exit`."""
    if len(images_BCHW) == 0:
        return
    with quiet_torch(runner.program):
        carry = runner.program.enter(images_BCHW)
    rows: Rows | None = Rows(torch.arange(len(images_BCHW), device=carry[0].device), carry)
    best = runner.nothing()
    try:
        for k in range(runner.num_exits):
            if rows is None:
                return
            with quiet_torch(runner.program):
                passed, asked = runner.reach(k, k, rows, tally)
                answers = Answers(asked.labels_B, torch.full_like(asked.labels_B, k), asked.confidence_B)
                if k == 0:
                    best = answers
                else:
                    columns = zip(best, answers, strict=True)
                    best = Answers(*(old_B.index_copy(0, rows.ids_B, new_B) for old_B, new_B in columns))
                _, onward = runner.divide(k, passed, asked)
                rows = None if onward is None else onward.drop(runner.plan_for(len(onward)).rows(len(onward)))
            yield best
    finally:
        if tally is not None:
            tally.answer(best.exits_B)
