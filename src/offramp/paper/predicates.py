"""The few kinds of statement a claim is made of, each as numbers over seeds and a verdict on them."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression, stdev

from offramp.paper import statistics
from offramp.paper.results import BUDGETS, Figures, Key, Results, What, fewest_images
from offramp.paper.statistics import Estimate, Ruling

Exits = tuple[int | None, int | None]  # exits as in a slice, from 0; of all by default
EVERY: Exits = (None, None)
LEAST = 0.1  # a rank correlation below it is hardly one
EXCESS: Mapping[What, What] = {"order": "excess", "order-train": "excess-train"}


@dataclass(frozen=True)
class Q:
    """A number of each run of a row: a figure's mean over some exits, as in a slice."""

    experiment: str
    row: str
    what: What = "top1"
    exits: Exits = EVERY

    def by_seed(self, results: Results) -> dict[int, float]:
        """The number for each seed; empty where the row has no such figure, or not so many exits."""
        numbers = {}
        for seed, figures in results.of(self.experiment, self.row).items():
            values = (figures.values(self.what) or ())[slice(*self.exits)]
            if values:
                numbers[seed] = fmean(values)
        return numbers


@dataclass(frozen=True)
class Finding:
    """The number that a predicate is about, and the verdict; `note` says of which budgets, or why there is none."""

    verdict: Ruling
    found: Estimate | None
    note: str = ""


class Predicate(ABC):
    """A statement about runs."""

    @property
    def digits(self) -> int:
        """With how many its number is shown."""
        return 2

    @abstractmethod
    def contrasts(self, results: Results) -> dict[int, float]:
        """The number that the statement is about, by seed, of the seeds that all its rows have."""

    def unit(self, results: Results) -> float:
        """How far the number goes with a difference of one point."""
        return 1.0

    def images(self, results: Results) -> int | None:
        """Of the smallest test set behind the number; None where it is not made of accuracies alone."""
        if any(q.what not in ("top1", "budgeted") for q in self.asked()):
            return None
        return fewest_images(f for q in self.asked() for f in results.of(q.experiment, q.row).values())

    def estimate(self, results: Results) -> Estimate | None:
        """The number and its interval; None where there is none."""
        values = list(self.contrasts(results).values())
        if not values:
            return None
        return statistics.estimate(values, images=self.images(results), unit=self.unit(results))

    def asked(self) -> list[Q]:
        """The numbers of rows that it is made of."""
        fields = vars(self).values()
        return [q for field in fields for q in (field if isinstance(field, tuple) else (field,)) if isinstance(q, Q)]

    def judge(self, results: Results) -> Finding:
        """The verdict; most statements say that the number lies above 0."""
        rows = {(q.experiment, q.row) for q in self.asked() if q.what == "budgeted"}
        budgets = _affordable(rows, results)
        estimate = self.estimate(_at(budgets, rows, results))
        if estimate is None:
            started = rows and all(results.of(*row) for row in rows)
            if started and not budgets:
                return Finding(Ruling.NOT_RESOLVED, None, "there is no budget that every run can afford")
            return Finding(Ruling.NOT_RUN, None)
        ruling = self.ruling(estimate, _at(budgets, rows, results))
        return Finding(ruling, estimate, _budgets_text(budgets) if rows else "")

    def ruling(self, estimate: Estimate, results: Results) -> Ruling:
        """Of the number and, where more is behind it, of the runs."""
        return self.verdict(estimate)

    def verdict(self, estimate: Estimate) -> Ruling:
        """Of the number and its interval."""
        return statistics.above(estimate)

    @abstractmethod
    def says(self) -> str:
        """The number in words, for the page."""


@dataclass(frozen=True)
class Pair(Predicate):
    """A statement about what `left` has over `right`, seed by seed."""

    left: Q
    right: Q

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        return _less(self.left.by_seed(results), self.right.by_seed(results))

    def runs(self, results: Results) -> list[tuple[int, Figures, Figures]]:
        """The seeds that both rows have, and what they gave."""
        ours, theirs = (results.of(q.experiment, q.row) for q in (self.left, self.right))
        return [(seed, ours[seed], theirs[seed]) for seed in ours if seed in theirs]


@dataclass(frozen=True)
class Greater(Pair):
    """`left` exceeds `right`."""

    @property
    def digits(self) -> int:  # noqa: D102
        return 4 if self.left.what.startswith("damping") else 2

    def says(self) -> str:  # noqa: D102
        if self.left.row == self.right.row:
            return f"{self.left.row}: {_exits(self.left)} less {_exits(self.right)}"
        return f"{self.left.row} less {self.right.row}, {_exits(self.left)}"


@dataclass(frozen=True)
class Summed(Greater):
    """`left` exceeds `right` in top-1 summed over exits: the Δ of the paper's Table 2."""

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        return {seed: self.unit(results) * mean for seed, mean in super().contrasts(results).items()}

    def unit(self, results: Results) -> float:  # noqa: D102
        return float(max(len(f.top1) for f in results.of(self.left.experiment, self.left.row).values()))

    def says(self) -> str:  # noqa: D102
        return f"{self.left.row} less {self.right.row}, top-1, sum over exits"


@dataclass(frozen=True)
class Against(Predicate):
    """A row exceeds every variant of a rival that was run: the number is over the best of them.

    It holds where it holds of each variant by its own interval, so that the best cannot be missed. It fails where one
    variant is ahead; to look for that is to look for the best of several, so their intervals share the error.

    Attributes:
        variants: The row over each variant, the paper's first.
        behind: By how much it may fall short of them.
    """

    variants: tuple[Greater, ...]
    behind: float = 0.0

    def asked(self) -> list[Q]:  # noqa: D102
        return [q for greater in self.variants for q in greater.asked()]

    def unit(self, results: Results) -> float:  # noqa: D102
        return self.variants[0].unit(results)

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        return min(self._run(results), key=lambda of: fmean(of.values()), default={})

    def ruling(self, estimate: Estimate, results: Results) -> Ruling:  # noqa: D102
        differences, images, unit = list(self._run(results)), self.images(results), self.unit(results)

        def rulings(confidence: float) -> set[Ruling]:
            estimates = (statistics.estimate(list(of.values()), confidence, images, unit) for of in differences)
            return {statistics.above(each, -self.behind) for each in estimates}

        if rulings(statistics.CONFIDENCE) == {Ruling.AGREES}:
            return Ruling.AGREES
        shared = 1 - (1 - statistics.CONFIDENCE) / len(differences)
        return Ruling.DISAGREES if Ruling.DISAGREES in rulings(shared) else Ruling.NOT_RESOLVED

    def judge(self, results: Results) -> Finding:  # noqa: D102
        finding = super().judge(results)
        missing = [each.right.row for each in self.variants if not each.contrasts(results)]
        if finding.found is None or not missing:
            return finding
        note = f"not run: {', '.join(missing)}"
        return dataclasses.replace(finding, note="; ".join(filter(None, [finding.note, note])))

    def says(self) -> str:  # noqa: D102
        first, others = self.variants[0], [each.right.row for each in self.variants[1:]]
        wanted = f"; above -{self.behind:g} wanted" if self.behind else ""
        return f"{first.says()}, or than {' or '.join(others)} where that is better{wanted}"

    def _run(self, results: Results) -> Iterator[dict[int, float]]:
        return filter(None, (each.contrasts(results) for each in self.variants))


@dataclass(frozen=True)
class NoMore(Greater):
    """`left` exceeds `right` by less than a margin."""

    margin: float

    def verdict(self, estimate: Estimate) -> Ruling:  # noqa: D102
        return statistics.below(estimate, self.margin)

    def says(self) -> str:  # noqa: D102
        return f"{super().says()}; less than {self.margin:g} wanted"


@dataclass(frozen=True)
class Ordered(Predicate):
    """Within an image the exits that do better are damped more: the number is a rank correlation over its exits.

    Spearman's, of the damping coefficient γ with F[y], averaged over images; more than `LEAST` is wanted.
    """

    of: Q

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        return self.of.by_seed(results)

    def verdict(self, estimate: Estimate) -> Ruling:  # noqa: D102
        return statistics.above(estimate, LEAST)

    def judge(self, results: Results) -> Finding:  # noqa: D102
        finding = super().judge(results)
        if finding.found is None:
            return finding
        excess = Q(self.of.experiment, self.of.row, EXCESS[self.of.what]).by_seed(results).values()
        note = f"γ at an image's best exit exceeds its mean over exits by {fmean(excess):.1f} %" if excess else ""
        return dataclasses.replace(finding, note=note)

    def says(self) -> str:  # noqa: D102
        where = "training" if self.of.what.endswith("train") else "test"
        return f"{self.of.row}: rank correlation of γ with F[y] over an image's exits, on {where}; above {LEAST} wanted"


@dataclass(frozen=True)
class LargerGain(Predicate):
    """What `left` has over `left_base` exceeds what `right` has over `right_base`."""

    left: Q
    left_base: Q
    right: Q
    right_base: Q

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        first = Greater(self.left, self.left_base).contrasts(results)
        return _less(first, Greater(self.right, self.right_base).contrasts(results))

    def says(self) -> str:  # noqa: D102
        return f"({Greater(self.left, self.left_base).says()}) less ({Greater(self.right, self.right_base).says()})"


@dataclass(frozen=True)
class Deeper(Predicate):
    """A figure of a row grows with depth (or falls, with `sign` -1): the number is its slope over the exits, 1 to K."""

    of: Q
    sign: int = 1

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        runs: Mapping[int, Figures] = results.of(self.of.experiment, self.of.row)
        curves = {seed: figures.values(self.of.what) for seed, figures in runs.items()}
        return {
            seed: 100 * self.sign * linear_regression(range(len(curve)), curve).slope
            for seed, curve in curves.items()
            if curve
        }

    @property
    def digits(self) -> int:  # noqa: D102
        return 2 if self.of.what == "weight" else 4

    def says(self) -> str:  # noqa: D102
        kind = {"damping": "F[N+1]", "gamma": "the damping coefficient γ", "weight": "the weight"}[self.of.what]
        last = "" if self.of.what == "damping" else " in the last epoch"
        return f"{self.of.row}: {'rise' if self.sign > 0 else 'fall'} of {kind} per exit{last}, in hundredths"


@dataclass(frozen=True)
class Over(Predicate):
    """A number grows (or falls, with `sign` -1) over rows with values `at`: its slope, per `per` of these."""

    rows: tuple[Q, ...]
    at: tuple[float, ...]
    sign: int
    per: float
    what: str

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        each = [row.by_seed(results) for row in self.rows]
        seeds = [seed for seed in each[0] if all(seed in values for values in each)]
        return {
            seed: self.sign * self.per * linear_regression(self.at, [values[seed] for values in each]).slope
            for seed in seeds
        }

    def unit(self, results: Results) -> float:  # noqa: D102
        middle = fmean(self.at)
        return self.per / math.sqrt(sum((at - middle) ** 2 for at in self.at))  # a slope weighs the rows

    def says(self) -> str:  # noqa: D102
        return self.what


@dataclass(frozen=True)
class Steadier(Predicate):
    """A number varies less over some rows than over others: by how much less, of the standard deviations over the rows.

    Those of the means over seeds: within a seed the noise of every row would add to them. Noise adds to these as well,
    in proportion to 1/n; pseudo-values of the jackknife over seeds are free of that, and their spread is the number's.
    """

    rows: tuple[Q, ...]
    others: tuple[Q, ...]
    what: str

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        each = [row.by_seed(results) for row in (*self.others, *self.rows)]
        seeds = [seed for seed in each[0] if all(seed in row for row in each)]
        if not seeds:
            return {}
        split = len(self.others)

        def less(left_out: int | None = None) -> float:
            means = [fmean(values[seed] for seed in seeds if seed != left_out) for values in each]
            return stdev(means[:split]) - stdev(means[split:])

        n, whole = len(seeds), less()
        return {seed: n * whole - (n - 1) * less(seed) if n > 1 else whole for seed in seeds}

    def says(self) -> str:  # noqa: D102
        return self.what


@dataclass(frozen=True)
class ExitByExit(Pair):
    """A statement about what `left` has over `right` in top-1 at each exit."""

    def at_exits(self, results: Results) -> list[dict[int, float]]:
        """That, by seed, of the seeds that both rows have."""
        runs = self.runs(results)
        num_exits = len(runs[0][1].top1) if runs else 0
        return [{seed: ours.top1[k] - theirs.top1[k] for seed, ours, theirs in runs} for k in range(num_exits)]

    def judge(self, results: Results) -> Finding:  # noqa: D102
        estimate = self.estimate(results)
        if estimate is None:
            return Finding(Ruling.NOT_RUN, None)
        return Finding(
            self.ruling_of_exits([list(of.values()) for of in self.at_exits(results)], self.images(results)), estimate
        )

    @abstractmethod
    def ruling_of_exits(self, values_by_exit: Sequence[Sequence[float]], images: int | None) -> Ruling:
        """The verdict on the values of all exits."""


@dataclass(frozen=True)
class Mixed(ExitByExit):
    """`left` exceeds `right` at some exits and falls short of it at others; the number is the mean over exits."""

    def ruling_of_exits(self, values_by_exit: Sequence[Sequence[float]], images: int | None) -> Ruling:  # noqa: D102
        return statistics.both_signs(values_by_exit, images)

    def says(self) -> str:  # noqa: D102
        return f"{self.left.row} less {self.right.row}, at some exits above 0 and at some below; mean over exits"


@dataclass(frozen=True)
class AtEveryExit(ExitByExit):
    """`left` exceeds `right` at every exit, all `but` so many; the number is the least gain of those that count."""

    but: int = 0

    def contrasts(self, results: Results) -> dict[int, float]:  # noqa: D102
        by_exit = sorted((of for of in self.at_exits(results) if of), key=lambda of: fmean(of.values()))
        return by_exit[self.but] if len(by_exit) > self.but else {}

    def ruling_of_exits(self, values_by_exit: Sequence[Sequence[float]], images: int | None) -> Ruling:  # noqa: D102
        return statistics.all_above(values_by_exit, self.but, images)

    def says(self) -> str:  # noqa: D102
        least = f"the least of all exits but {self.but}" if self.but else "the least of all exits"
        return f"{self.left.row} less {self.right.row}, top-1, {least}"


def _affordable(rows: Collection[Key], results: Results) -> list[int]:
    """Which of `BUDGETS` every run of these rows can afford: below its cheapest point a curve says nothing."""
    curves = [curve for row in rows for f in results.of(*row).values() if (curve := f.values("budgeted"))]
    return [b for b in range(len(BUDGETS)) if not any(math.isnan(curve[b]) for curve in curves)]


def _at(budgets: Sequence[int], rows: Collection[Key], results: Results) -> Results:
    """The results, in which these rows have accuracies at these budgets alone."""
    cut = {
        row: {
            seed: dataclasses.replace(f, numbers={**f.numbers, "budgeted": tuple(curve[b] for b in budgets)})
            if (curve := f.values("budgeted"))
            else f
            for seed, f in results.of(*row).items()
        }
        for row in rows
    }
    return Results({**results.figures, **cut})


def _budgets_text(budgets: Sequence[int]) -> str:
    every = "" if len(budgets) == len(BUDGETS) else ", those that all these runs can afford"
    text = f"budgets of {', '.join(f'{100 * BUDGETS[b]:.0f}' for b in budgets)} % of the operations"
    return f"{text}{every}"


def _less(left: Mapping[int, float], right: Mapping[int, float]) -> dict[int, float]:
    return {seed: left[seed] - right[seed] for seed in left if seed in right}


def _exits(q: Q) -> str:
    first, last = q.exits
    kind = {"top1": "top-1", "damping": "F[N+1] on test", "budgeted": "accuracy at equal operations"}.get(
        q.what, q.what
    )
    if q.exits == EVERY:
        return f"{kind}, mean over {'budgets' if q.what == 'budgeted' else 'exits'}"
    if first is None and last is not None:
        return f"{kind}, first {last} exits" if last > 0 else f"{kind}, all but the last {-last} exits"
    if last is None and first is not None and first < 0:
        return f"{kind}, last exit" if first == -1 else f"{kind}, last {-first} exits"
    raise ValueError(q.exits)
