"""A promise about early answers, and which candidate policies keep it: Learn-then-Test on counts.

Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test" (2021). J candidates, ordered from those that hold images
back to those that let them go; S images. Arrays of counts may have any leading axes, so that one call serves one
calibration set or ten thousand, one class or all.

No image may be in both of the two sets used here. From `search` come the candidates, their order, where testing starts
and how much is bet; from `certify` come p-values, and nothing else.
"""

from collections.abc import Sequence
from decimal import ROUND_DOWN, Decimal
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from offramp.certificate import Promise
from offramp.choices import Loss
from offramp.errors import UsageError
from offramp.evaluation.bounds import FloatArray, IntArray, best_bet, betting_p_value, binomial_p_value, upper_limit

BoolArray = npt.NDArray[np.bool_]
DISAGREEMENT_CONFIDENCE = 0.995  # of the limit that a guard watches: see `Disagreement`
MOST_IMAGES = 10**9  # where `images_needed` gives up


class LossCounts(NamedTuple):
    """What candidates did on a set of images, as counts that broadcast: integers of shape `[..., J]`."""

    lost: IntArray
    """Images with a loss of 1."""
    gained: IntArray
    """Images with a loss of -1 (`drop` only, else 0)."""
    counted: IntArray
    """Images the risk is a share of: all, or for `early-error` those that left early."""

    @property
    def risk(self) -> FloatArray:
        """The mean loss; 0 where nothing is counted."""
        return np.asarray((self.lost - self.gained) / np.maximum(self.counted, 1))


class Events(NamedTuple):
    """Which images are lost, gained and counted under a loss: three masks of one shape."""

    lost: BoolArray
    gained: BoolArray
    counted: BoolArray


def events(loss: Loss, left: BoolArray, right: BoolArray, full: BoolArray) -> Events:
    """What happens to images under a policy: `left` early or not, answered `right` or not, right at the last exit."""
    no = np.zeros_like(left)
    if loss == "early-error":
        return Events(left & ~right, no, left)
    lost = left & ~right & full
    return Events(lost, left & right & ~full if loss == "drop" else no, ~no)


def p_values(promise: Promise, certify: LossCounts, search: LossCounts) -> FloatArray:
    """How strongly the certify images speak against "the risk is above `risk`", elementwise.

    A 0/1 loss on independent images is binomial. For `early-error` the number of images that leave is random, but
    given which images leave, their answers are still independent, each wrong with the probability in question: the
    binomial of that many images holds given their number, so it holds.

    A drop is at most the regret, so the binomial of its losses alone is valid too, and stronger where gains are
    rare. Each candidate gets the test that would have been stronger on the search images.
    """
    if promise.loss != "drop":
        return losing(promise, certify)
    return np.where(bets(promise, search), _betting(promise, certify, search), losing(promise, certify))


def losing(promise: Promise, tally: LossCounts) -> FloatArray:
    """The exact binomial p-value of the losses alone."""
    return binomial_p_value(tally.lost, tally.counted, promise.risk)


def bets(promise: Promise, search: LossCounts) -> BoolArray:
    """Which candidates are tested by betting on the signed loss, not by the exact binomial."""
    if promise.loss != "drop":
        return np.zeros(np.broadcast(*search).shape, dtype=bool)
    return _betting(promise, search, search) < losing(promise, search)


def _betting(promise: Promise, tally: LossCounts, search: LossCounts) -> FloatArray:
    # One more than was seen: a candidate under which no search image differs is not sure to change none.
    differing = (search.lost + search.gained + 1) / (search.counted + 1)
    bet = best_bet(differing, tally.counted, promise.risk, promise.confidence)
    return betting_p_value(tally.lost, tally.gained, tally.counted, promise.risk, bet)


def images_needed(promise: Promise) -> int:
    """The fewest counted images, none of them with a loss (or a gain), that could keep the promise."""

    def enough(images: int) -> bool:
        tally = LossCounts(np.array(0), np.array(0), np.array(images))
        return bool(p_values(promise, tally, tally) <= promise.level)

    high = 1
    while not enough(high):
        if high > MOST_IMAGES:
            raise UsageError(f"risk={promise.risk} at confidence={promise.confidence} needs over a billion images.")
        high *= 2
    low = high // 2  # not enough (or 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def cheapest_kept(p_values_J: FloatArray, start: IntArray, level: float) -> IntArray:
    """Fixed-sequence testing: the last candidate that passes before the first that fails, from `start` on; -1 if none.

    Each candidate is tested at the whole level, because testing stops at the first failure: to certify a candidate that
    breaks the promise, the first such on the way has to pass, which happens with probability `level` at most. The order
    and `start` (one per leading index) must not depend on the images that the p-values come from.

    Args:
        p_values_J: `[..., J]`.
        start: Candidates, of shape `[...]`.
        level: 1 - confidence.
    """
    J = p_values_J.shape[-1]
    # Written with > last: a p-value that is not a number passes no test.
    fails = ~(p_values_J <= level) & (np.arange(J) >= start[..., None])
    first_failure = np.where(fails.any(-1), fails.argmax(-1), J)
    return np.where(first_failure > start, first_failure - 1, -1)


def learn_then_test(promise: Promise, search: LossCounts, certify: LossCounts, axis: int | None = None) -> IntArray:
    """The cheapest candidate certified to keep `promise`, of shape `[...]`; -1 where none is.

    Testing starts at the candidate that loses least on the search images, by the binomial p-value of its losses. For a
    share of all images this is usually the first; for a share of those that leave, the first candidates let so few go
    that nothing can be said of them. Gains are left aside: the candidate of many with the most is lucky, and elsewhere
    often fails.

    Args:
        search: Counts on the search images, `[..., J]`.
        certify: Counts on the certify images, of the same shape.
        axis: Where the groups (classes) stand for each of which the promise is to hold. A candidate's p-value is then
            the largest of its groups': it breaks the joint promise if it breaks one of them, whose own p-value is then
            at most `level` with probability at most `level`. So no further correction is needed
            (intersection-union test; Berger, 1982).
    """
    expected_J, p_values_J = losing(promise, search), p_values(promise, certify, search)
    if axis is not None:
        expected_J, p_values_J = expected_J.max(axis), p_values_J.max(axis)
    return cheapest_kept(p_values_J, expected_J.argmin(-1), promise.level)


def rung_promises(risks: Sequence[float], confidence: float, loss: Loss) -> tuple[Promise, ...]:
    """A promise for each risk, such that all hold at once with `confidence`: 1 - confidence is divided among them.

    Each may be broken with probability (1 - confidence) / rungs, rounded down to three digits that can be read. Which
    rung fails can depend on which others do in any way (Bonferroni), and a rung that cannot be kept has had its share.
    """
    Promise(0.5, confidence, loss)
    level = (1 - Decimal(str(confidence))) / len(risks)
    level = level.quantize(Decimal((0, (1,), level.adjusted() - 2)), ROUND_DOWN)
    return tuple(Promise(risk, float(1 - level), loss) for risk in risks)


def climb(promises: Sequence[Promise], search: LossCounts, certify: LossCounts, axis: int | None = None) -> IntArray:
    """For each rung of a ladder the cheapest candidate certified to keep its promise, `[R, ...]`; -1 where none is.

    Each rung is `learn_then_test` on the same candidates. What is certified for a lower risk is certified for a higher
    one, so no rung is given an earlier candidate than the rung before it.
    """
    chosen = [learn_then_test(promise, search, certify, axis) for promise in promises]
    return np.maximum.accumulate(chosen, axis=0)


def disagreement_limits(differing: IntArray, early: IntArray) -> FloatArray:
    """Upper limits of the shares that differ among the images that leave early, for all J candidates at once.

    Which images leave is given: their answers are then independent, and differ with the probability in question. The
    images also choose among the candidates, so any may be the one whose limit is used: each has its J-th of the doubt.

    Args:
        differing: Images that leave early with another answer than the last exit's, `[..., J]`.
        early: Images that leave early.
    """
    level = (1 - DISAGREEMENT_CONFIDENCE) / differing.shape[-1]
    return upper_limit(differing, early, 1 - level)
