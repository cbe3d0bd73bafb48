"""Statements about what methods cost: time, operations, parameters."""

import dataclasses
from dataclasses import dataclass
from statistics import fmean

from offramp.paper.predicates import Finding, Pair
from offramp.paper.results import Results
from offramp.paper.statistics import Estimate, Ruling


@dataclass(frozen=True)
class Faster(Pair):
    """`left` takes less time than `limit` times `right`: the number is the time saved, in percent of that.

    Of the seeds that both rows were timed with under the same conditions, with nothing else going on.
    """

    limit: float = 1.0

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        alike = [(seed, a.seconds, b.seconds) for seed, a, b in self.runs(results) if a.timed_like(b)]
        return {seed: 100 * (1 - a / (self.limit * b)) for seed, a, b in alike if a is not None and b is not None}

    def judge(self, results: Results) -> Finding:  # noqa: D102
        finding = super().judge(results)
        timed = [
            (a.clock, b.clock) for _, a, b in self.runs(results) if a.seconds is not None and b.seconds is not None
        ]
        if not timed or finding.found is not None:
            return finding
        alike = any(left and right and left.like(right) for left, right in timed)
        return Finding(Ruling.DISTURBED if alike else Ruling.OTHER_CLOCK, None)

    def says(self) -> str:  # noqa: D102
        limit = "" if self.limit == 1 else f"{self.limit:g} times "
        return f"training time that {self.left.row} saves against {limit}{self.right.row}, in percent"


@dataclass(frozen=True)
class Costs(Pair):
    """`left` costs at most `percent` more than `right` at every exit: the number is the most that it costs more.

    Counts have no error: one seed says it. Training times of both stand beside it and are not judged.
    """

    percent: float

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        what = self.left.what
        counts = [(seed, ours.values(what), theirs.values(what)) for seed, ours, theirs in self.runs(results)]
        return {
            seed: max(100 * (a / b - 1) for a, b in zip(left, right, strict=True))
            for seed, left, right in counts
            if left and right
        }

    @property
    def digits(self) -> int:  # noqa: D102
        return 4

    def judge(self, results: Results) -> Finding:  # noqa: D102
        values = self.contrasts(results).values()
        if not values:
            return Finding(Ruling.NOT_RUN, None)
        difference = Estimate(max(values), 0.0, len(values))
        left, right = (dataclasses.replace(q, what="seconds") for q in (self.left, self.right))
        saved = Faster(left, right).contrasts(results).values()
        time = f"training time, not judged: {1 - fmean(saved) / 100:.2f} times, of {len(saved)} pairs" if saved else ""
        return Finding(Ruling.AGREES if difference.mean <= self.percent else Ruling.DISAGREES, difference, time)

    def says(self) -> str:  # noqa: D102
        return (
            f"{self.left.what} that {self.left.row} has over {self.right.row}, in percent, at the exit where that is "
            f"most; at most {self.percent:g} wanted"
        )
