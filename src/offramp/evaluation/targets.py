"""From a target a user thinks in to a policy."""

from offramp.costs import Cost
from offramp.errors import UsageError
from offramp.evaluation.record import Record
from offramp.evaluation.search import CAUTION, candidates, check_number, search_thresholds
from offramp.evaluation.thresholds import policies
from offramp.policy import SOFTMAX, Measure, Policy

DROP_CAUTION = 2.0


def policy_for(
    search: Record,
    cost: Cost,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    measure: Measure = SOFTMAX,
    caution: float | None = None,
) -> Policy:
    """The best policy found on `search` for a budget, or the cheapest that loses little accuracy.

    Operations count the heads of all exits up to the one taken, as published (`Cost.exits`). Both targets are met on
    `search`; on other images they are met on average, not surely: a promise needs a certificate.

    Args:
        search: Logits on the search half of the held-out images.
        cost: `offramp.cost(network)`.
        budget: Expected operations per image; a share of the whole network's where 1 or less.
        max_drop: How many percentage points of accuracy may be lost against the last exit, for every image.
        measure: How confidence is read off logits. With temperatures: `Measure(temperatures=fit_temperatures(search))`.
        caution: In standard errors of a paired difference on `search`. With `budget`, by how much a policy must beat
            geometric shares to be taken (default 1). With `max_drop`, how much larger than seen the drop is taken to be
            (default 2: the cheapest of some hundred policies looks better than it is; at 1, half of them lost more).

    Raises:
        UsageError: Not exactly one target, a target that cannot be met, a record of another part than `search`.
    """
    if (budget is None) == (max_drop is None):
        raise UsageError("Give one target: budget (operations per image) or max_drop (percentage points of accuracy).")
    if budget is not None:
        caution = CAUTION if caution is None else caution
        return search_thresholds(search, cost, [budget], measure=measure, caution=caution)[0]
    assert max_drop is not None
    caution = DROP_CAUTION if caution is None else caution
    check_number("max_drop", max_drop, 0)
    check_number("caution", caution, 0)
    found = candidates(search, cost, measure)
    j = found.choose_cheapest(max_drop, caution)
    how = {**found.how(j), "max_drop": max_drop, "caution": caution}
    return policies(found.thresholds_JK[[j]], found.seen, search, measure, [how])[0]
