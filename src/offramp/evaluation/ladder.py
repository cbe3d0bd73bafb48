"""For each of several risks the cheapest policy certified to keep it, all promises at once: a ladder."""

from collections.abc import Sequence

from offramp.choices import Loss
from offramp.costs import Cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation.certify import Tested
from offramp.evaluation.promises import climb, rung_promises
from offramp.evaluation.record import Record
from offramp.ladder import Ladder, LeftOut, check_risks
from offramp.policy import Measure, Policy


def certify_ladder(
    search: Record,
    certify: Record,
    cost: Cost,
    *,
    risks: Sequence[float],
    confidence: float = 0.95,
    loss: Loss = "regret",
    per_class: bool = False,
    measure: Measure | None = None,
    candidates: Sequence[Policy] | None = None,
) -> Ladder:
    """For each risk the cheapest policy certified to keep it, such that all promises hold at once.

    Candidates are those of `certify` along which no threshold rises: a chain that comes from `search` alone. Each rung
    is tested like a certificate of its own, at its part of 1 - confidence: (1 - confidence) / rungs, also where a rung
    is then left out (Bonferroni). The other arguments are those of `certify`.

    Args:
        risks: Rising, each in (0, 1).
        confidence: With which all promises hold at once.

    Raises:
        UsageError: As of `certify`; risks that do not rise, candidates with several measures.
        OfframpError: No rung can be certified.
    """
    check_risks(risks)
    if candidates is not None and len({policy.measure for policy in candidates}) > 1:
        raise UsageError("The candidates for a ladder read confidence in one way: one measure for all rungs.")
    promises = rung_promises(risks, confidence, loss)
    loosest = promises[-1]
    tested = Tested.of(loosest, search, certify, cost, per_class, measure, candidates, falling=True)
    chosen = climb(promises, tested.on_search, tested.on_certify, axis=0).tolist()
    rungs, left_out = [], []
    for promise, now, before in zip(promises, chosen, [-1, *chosen], strict=False):
        if now > before:
            rungs.append(tested.certified(promise, now, confidence))
        elif now < 0:
            left_out.append(LeftOut(promise.risk, tested.none_passed(promise)))
        else:
            why = f"No cheaper policy can be certified at risk {promise.risk} than on the rung before."
            left_out.append(LeftOut(promise.risk, why))
    if not rungs:
        raise OfframpError(f"No rung of the ladder can be certified. {left_out[-1].why}")
    return Ladder(tuple(rungs), confidence, tuple(left_out))
