"""From a target a user thinks in to a policy."""

from collections.abc import Sequence

from offramp.checks import check_size
from offramp.costs import Cost
from offramp.errors import UsageError
from offramp.evaluation.record import Record
from offramp.evaluation.search import (
    CAUTION,
    candidates,
    in_milliseconds,
    in_operations,
    search_thresholds,
)
from offramp.evaluation.thresholds import check_times, policies
from offramp.policy import SOFTMAX, Measure, Policy

DROP_CAUTION = 2.0


def policy_for(
    search: Record,
    cost: Cost,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    latency: float | None = None,
    times: Sequence[float] | None = None,
    measure: Measure = SOFTMAX,
    caution: float | None = None,
) -> Policy:
    """The best policy found on `search` for a budget or a latency, or the cheapest that loses little accuracy.

    Operations count the heads of all exits up to the one taken, as published (`Cost.exits`). All targets are met on
    `search`; on other images they are met on average, not surely: a promise needs a certificate.

    What was counted as the cost stands in the policy's `found` as `price`: `operations` or `milliseconds`; with
    `times`, these and the expected `milliseconds` too.

    Args:
        search: Logits on the search half of the held-out images.
        budget: Expected operations per image; a share of the whole network's where 1 or less.
        max_drop: How many percentage points of accuracy may be lost against the last exit, for every image. The
            cheapest such policy is taken: in operations, or with `times` in milliseconds.
        latency: Expected milliseconds per image; needs `times`.
        times: Milliseconds of an image that leaves at each exit, as measured: K positive numbers, none falling.
        measure: How confidence is read off logits. With temperatures: `Measure(temperatures=fit_temperatures(search))`.
        caution: In standard errors of a paired difference on `search`. With `budget` and `latency`, by how much a
            policy must beat geometric shares to be taken (default 1). With `max_drop`, how much larger than seen the
            drop is taken to be (default 2: the cheapest of some hundred policies looks better than it is; on made-up
            networks a fifth of them lost more than asked for, at 1 half, as docs/LOG.md has it).

    Raises:
        UsageError: Not exactly one target, a target that cannot be met, times that cannot be, a record of another part
            than `search`.
    """
    check_target(cost, budget=budget, max_drop=max_drop, latency=latency, times=times)
    if max_drop is None:
        limit = budget if latency is None else latency
        assert limit is not None
        caution = CAUTION if caution is None else caution
        return search_thresholds(search, cost, [limit], times=times, measure=measure, caution=caution)[0]
    caution = DROP_CAUTION if caution is None else caution
    check_size("caution", caution)
    tried = candidates(search, cost, measure, times)
    j = tried.choose_cheapest(max_drop, caution)
    how = {**tried.how(j), "max_drop": max_drop, "caution": caution}
    return policies(tried.thresholds_JK[[j]], tried.seen, search, measure, [how])[0]


def check_target(
    cost: Cost,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    latency: float | None = None,
    times: Sequence[float] | None = None,
) -> None:
    """Refuse a target that `policy_for` would refuse, before anything is recorded for it; arguments as there."""
    check_one(budget, max_drop, latency)
    if times is not None:
        check_times(times, len(cost.exits))
    if budget is not None:
        in_operations(budget, cost)
        if times is not None:
            raise UsageError("A budget counts operations and has no use for times; in milliseconds, give a latency.")
    elif max_drop is not None:
        check_size("max_drop", max_drop)
    elif latency is not None:
        if times is None:
            raise UsageError("A latency needs times: the milliseconds of an image that leaves at each exit.")
        in_milliseconds(latency, times)


def check_one(budget: float | None, max_drop: float | None, latency: float | None) -> None:
    """Refuse all but exactly one target."""
    if [budget, max_drop, latency].count(None) != 2:
        raise UsageError(
            "Give one target: budget (operations per image), max_drop (percentage points of accuracy) or latency "
            "(milliseconds per image)."
        )
