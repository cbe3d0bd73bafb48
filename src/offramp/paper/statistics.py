"""What a few seeds can say: means with intervals, and verdicts in words.

Differences are taken seed by seed. Intervals are Student's: they take the differences for normal, which a handful
cannot show, and hold for each by itself; of twenty claims whose truth is 0, one will seem resolved.

Two seeds may give equal differences by chance, because a top-1 of S images comes in steps of 100/S. That they are equal
does not say that they do not vary. So the deviation of a difference of accuracies is taken for no less than
`sampling_error`, and where values are no accuracies and are all equal their interval is infinite.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy.special import nctdtrinc, stdtr, stdtrit

from offramp.evaluation.bounds import paired_difference

CONFIDENCE = 0.95
EQUIVALENCE = 0.90  # its interval within a margin is two one-sided tests at 5 % each, its interval outside of it one
FOUND = 0.8  # chance of finding a difference that is large enough to be looked for
HALF_RANGE_OF_FIVE = 1.163  # of five normal values, in standard deviations


class Ruling(StrEnum):
    """What the runs say of a claim."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    NOT_RESOLVED = "not resolved at this n"
    NOT_COMPARABLE = "not comparable (other data)"
    OTHER_RECIPE = "not comparable (another recipe)"
    OTHER_CLOCK = "not comparable (times of another device, or of other threads, form or jobs)"
    DISTURBED = "not judged (other work ran beside, or nothing says that none did)"
    NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        half: How far the interval reaches to each side; infinite for one value.
    """

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def text(self, digits: int = 2) -> str:
        """`+0.29 [+0.11, +0.47]`, the mean alone for one value."""
        interval = "" if math.isinf(self.half) else f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        return f"{self.mean:+.{digits}f}{interval}"


def sampling_error(difference: float, images: int) -> float:
    """The least that a difference of two accuracies on so many images can vary from one draw of images to another.

    A difference of d points takes at least S |d| / 100 images that differ, all to one side; `bounds.paired_difference`
    (Agresti and Min) gives the standard error of that, about 10 sqrt(|d|) / sqrt(S) points, and where no image differs
    100 / (S + 2), about one image. Even that is more than the rounding of a top-1 to steps of 100/S: 1/sqrt(12) of a
    step; of what is made of four of them, a gain less a gain, 1/sqrt(3).

    Args:
        difference: In points.
    """
    differing = min(abs(difference) / 100, 1) * images
    return 100 * float(paired_difference(differing, 0, images)[1])


def estimate(
    values: Sequence[float], confidence: float = CONFIDENCE, images: int | None = None, unit: float = 1.0
) -> Estimate:
    """The mean of the values and Student's interval, which says nothing where one of them is no number.

    Args:
        values: One a seed.
        confidence: Of the interval.
        images: Of the test set, where values are made of accuracies: their deviation is then taken for no less than the
            `sampling_error` of their mean. Where they are not, that of equal values is unknown, not 0.
        unit: How far values go with a difference of one point.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1 or any(map(math.isnan, values)):
        return Estimate(mean, math.inf, n)
    deviation = max(statistics.stdev(values), unit * sampling_error(mean / unit, images) if images else 0.0)
    return Estimate(mean, _t(n - 1, confidence) * deviation / math.sqrt(n) if deviation else math.inf, n)


def p_value(values: Sequence[float], images: int | None = None) -> float:
    """Two-sided, of Student's test that the true mean is 0, with the deviation of `estimate`; 1 for one value."""
    interval = estimate(values, images=images)
    if math.isinf(interval.half):
        return 1.0
    error = interval.half / _t(interval.n - 1, CONFIDENCE)
    return float(2 * stdtr(interval.n - 1, -abs(interval.mean) / error))


def detectable(values: Sequence[float], comparisons: int, images: int | None = None) -> float:
    """The true mean that such values show to differ from 0 in `FOUND` of all studies, where it is one of so many means.

    By Student's test at the level that Holm asks of the smallest p-value, for a deviation as that of the values.
    """
    interval = estimate(values, images=images)
    freedom = interval.n - 1
    error = interval.half / _t(freedom, CONFIDENCE)
    return error * float(nctdtrinc(freedom, 1 - FOUND, _t(freedom, 1 - (1 - CONFIDENCE) / comparisons)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The same, corrected for how many they are (Holm): that any at 5 % is wrong has a chance of 5 % at most."""
    largest, corrected = 0.0, [0.0] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def against_published(
    values: Sequence[float],
    published: float,
    runs: int,
    *,
    deviation: float | None = None,
    confidence: float = CONFIDENCE,
    images: int | None = None,
) -> Estimate:
    """Our mean less a published one of so many runs.

    Args:
        values: Ours.
        published: The mean of `runs` others.
        deviation: Their standard deviation, which is pooled with ours; where none is known theirs are taken to spread
            like ours.
        confidence: Of the interval.
        images: Of the test set; our deviation is taken for no less than that of rounding, `sampling_error` of 0.
    """
    n = len(values)
    difference = statistics.fmean(values) - published
    if n == 1:
        return Estimate(difference, math.inf, 1)
    least = sampling_error(0, images) if images else 0.0
    freedom, variance = n - 1, max(statistics.variance(values), least**2)
    if not variance:
        return Estimate(difference, math.inf, n)
    if deviation is not None and runs > 1:
        variance = (freedom * variance + (runs - 1) * deviation**2) / (freedom + runs - 1)
        freedom += runs - 1
    return Estimate(difference, _t(freedom, confidence) * math.sqrt(variance * (1 / n + 1 / runs)), n)


def above(estimate: Estimate, margin: float = 0.0) -> Ruling:
    """Whether the true mean lies above the margin."""
    if estimate.low > margin:
        return Ruling.AGREES
    return Ruling.DISAGREES if estimate.high < margin else Ruling.NOT_RESOLVED


def below(estimate: Estimate, margin: float) -> Ruling:
    """Whether the true mean lies below the margin."""
    return above(Estimate(-estimate.mean, estimate.half, estimate.n), -margin)


def within(estimate: Estimate, margin: float) -> Ruling:
    """Whether the true mean lies within the margin of 0, to both sides: for an interval of `EQUIVALENCE`."""
    if -margin < estimate.low and estimate.high < margin:
        return Ruling.AGREES
    outside = estimate.low > margin or estimate.high < -margin
    return Ruling.DISAGREES if outside else Ruling.NOT_RESOLVED


def both_signs(values_by_exit: Sequence[Sequence[float]], images: int | None = None) -> Ruling:
    """Whether some of several quantities lie above 0 and some below, each given by its values over seeds.

    To name one above and one below is to look for the best of many, so their intervals share the error between them. It
    is contradicted where all lie on one side, each by its own interval.
    """
    shared = 1 - (1 - CONFIDENCE) / len(values_by_exit)
    signs = {above(estimate(values, shared, images)) for values in values_by_exit}
    if {Ruling.AGREES, Ruling.DISAGREES} <= signs:
        return Ruling.AGREES
    alone = {above(estimate(values, images=images)) for values in values_by_exit}
    return Ruling.DISAGREES if len(alone) == 1 and Ruling.NOT_RESOLVED not in alone else Ruling.NOT_RESOLVED


def all_above(values_by_exit: Sequence[Sequence[float]], but: int = 0, images: int | None = None) -> Ruling:
    """Whether several quantities lie above 0, all `but` so many, each given by its values over seeds.

    It holds where they do, each by its own interval. It fails where more than `but` lie below 0; to look for those is
    to look for the worst of many, so their intervals share the error between them.
    """
    if (
        sum(above(estimate(values, images=images)) is Ruling.AGREES for values in values_by_exit)
        >= len(values_by_exit) - but
    ):
        return Ruling.AGREES
    shared = 1 - (1 - CONFIDENCE) / len(values_by_exit)
    below_0 = sum(above(estimate(values, shared, images)) is Ruling.DISAGREES for values in values_by_exit)
    return Ruling.DISAGREES if below_0 > but else Ruling.NOT_RESOLVED


def all_of(verdicts: Sequence[Ruling]) -> Ruling:
    """Of a claim with several parts: it agrees where all do, and fails with one."""
    not_comparable = (Ruling.NOT_COMPARABLE, Ruling.OTHER_RECIPE, Ruling.OTHER_CLOCK, Ruling.DISTURBED)
    for decisive in (Ruling.NOT_RUN, Ruling.DISAGREES, *not_comparable, Ruling.NOT_RESOLVED):
        if decisive in verdicts:
            return decisive
    return Ruling.AGREES


def _t(freedom: int, confidence: float) -> float:
    return float(stdtrit(freedom, (1 + confidence) / 2))
