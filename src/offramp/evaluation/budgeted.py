"""Budgeted batch classification as published: accuracy against expected operations (Huang et al., ICLR 2018; Fig. 4).

K exits, S images, J policies. One parameter p sets which share of the images each exit is to take; thresholds that do
so are found on `search`; accuracy and expected operations are those of the same thresholds on the test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.costs import Cost
from offramp.evaluation.record import Record
from offramp.evaluation.thresholds import (
    PUBLISHED_P,
    check_reported,
    check_search,
    policies,
    scores,
    share_thresholds,
    share_true,
)
from offramp.policy import SOFTMAX, Measure, Policy, geometric_shares


@dataclass(frozen=True)
class Point:
    """A policy on a data set.

    Attributes:
        policy: Thresholds, and how they were found.
        accuracy: In percent.
        operations: Expected operations per image, counting the heads of all exits up to the one taken, as published.
        shares: Share of the images that leaves at each exit, in [0, 1].
    """

    policy: Policy
    accuracy: float
    operations: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Policies on one data set.

    Attributes:
        points: In the order of the policies.
    """

    points: tuple[Point, ...]
    split: str
    fingerprint: str
    num_images: int

    def __str__(self) -> str:
        lines = [f"{self.split}, {self.num_images} images", "  operations  accuracy %  share leaving at each exit"]
        lines += [
            f"{point.operations:12,.0f}  {point.accuracy:10.2f}  {' '.join(f'{share:.3f}' for share in point.shares)}"
            for point in self.points
        ]
        return "\n".join(lines)


def budgeted(search: Record, test: Record, cost: Cost, *, measure: Measure = SOFTMAX) -> Curve:
    """The published curve: 39 points, p from 0.05 to 1.95; thresholds on `search`, figures on `test`.

    Raises:
        UsageError: A record for `search` that is of another part, one for `test` that is held out or trained on,
            records of two networks.
    """
    return curve(geometric_policies(search, cost, measure=measure), test, cost)


def geometric_policies(
    search: Record,
    cost: Cost,
    p: Sequence[float] = PUBLISHED_P,
    *,
    measure: Measure = SOFTMAX,
) -> tuple[Policy, ...]:
    """A policy for each p, at whose thresholds exit k = 1...K takes p^k / (p + ... + p^K) of the images of `search`."""
    check_search(search)
    seen = scores(search, cost, measure)
    thresholds_JK = share_thresholds(seen.confidence_KS, geometric_shares(p, len(seen.confidence_KS)))
    origins = [{"procedure": "geometric shares", "p": value} for value in p]
    return policies(thresholds_JK, seen, search, measure, origins)


def curve(policies: Sequence[Policy], test: Record, cost: Cost) -> Curve:
    """What each of `policies` does on `test`.

    Raises:
        UsageError: A record of images that were trained on or held out, or of another network than a policy's.
    """
    check_reported(test, policies)
    points: dict[int, Point] = {}
    for measure in dict.fromkeys(policy.measure for policy in policies):  # confidences once per measure
        seen = scores(test, cost, measure)
        places = [j for j, policy in enumerate(policies) if policy.measure == measure]
        taken_JK, right_JS = seen.replay(seen.thresholds([policies[j] for j in places]))
        rows = zip(
            places,
            (100 * share_true(right_JS)).tolist(),
            seen.operations(taken_JK).tolist(),
            (taken_JK.double() / test.num_images).tolist(),
            strict=True,
        )
        points |= {j: Point(policies[j], right, spent, tuple(shares)) for j, right, spent, shares in rows}
    in_order = tuple(points[j] for j in range(len(policies)))
    return Curve(in_order, test.split, test.fingerprint, test.num_images)
