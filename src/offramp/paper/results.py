"""Figures by row and seed: what finished runs gave, and what the paper printed, in one form.

K exits. Tables and claims read nothing else.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import fmean
from typing import Any, Literal, TypeAlias

from offramp.paper import statistics
from offramp.paper.experiments import Experiment, Row
from offramp.paper.identity import run_hash
from offramp.paper.manifest import Manifest, ManifestFile

What = Literal[
    "top1",
    "damping",
    "damping-train",
    "train-nll",
    "gamma",
    "weight",
    "seconds",
    "budgeted",
    "ece",
    "search",
    "learned",
    "damped",
    "reversed",
    "operations",
    "parameters",
    "order",
    "order-train",
    "excess",
    "excess-train",
    "speed-up",
    "leaving",
    "early",
    "ece-early",
]
BUDGETS = tuple(tenth / 10 for tenth in range(3, 11))  # shares of the whole network's operations


@dataclass(frozen=True)
class Clock:
    """Under which conditions a run's time was taken: times of others say nothing about a method.

    Attributes:
        device: Its name; of a processor that its manifest does not name (older ones), `cpu`.
        moved: Whether the run was begun on another device or with other threads; then its time is like no other.
        alone: Whether the machine did nothing else meanwhile; None where the manifest does not say.
    """

    device: str
    threads: int
    jobs: int
    moved: bool = False
    alone: bool | None = None

    def __str__(self) -> str:
        runs = "one run at a time" if self.jobs == 1 else f"{self.jobs} runs side by side"
        beside = {True: "", False: ", other work beside", None: ", other work not recorded"}[self.alone]
        begun = ", begun elsewhere" if self.moved else ""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.device}, {threads}, {runs} by this command{beside}{begun}"

    def like(self, other: "Clock") -> bool:
        """Whether device, threads and runs side by side were the same, whatever else the machine did."""
        mine = dataclasses.replace(self, alone=other.alone)
        return mine == other and not self.moved


@dataclass(frozen=True)
class Figures:
    """What one run gave, or a row of the paper; None where there is nothing.

    Attributes:
        top1: Accuracy of each exit on the test set, in percent.
        damping: Mean of F[N+1] of each exit on the test set.
        damping_train: The same on training images with test transforms.
        train_nll: Negative log-likelihood of each exit on training images, in nats: the loss it converged to.
        gamma: Damping coefficient of each exit, its mean over the last epoch of training.
        weight: Weight of each exit, likewise.
        budgeted: Accuracy at each of `BUDGETS` under thresholds, in percent.
        ece: Expected calibration error of each exit on the test set, from 0 to 1.
        search: Accuracy of each exit on `search` after the last epoch, in percent.
        learned: Share of each exit's push that comes from learned images, over all epochs, as its record of gradients
            says.
        damped: Share of images whose gradient is damped, likewise.
        reversed: Share of images whose gradient is reversed, likewise.
        operations: Of each exit, with all heads on the way.
        parameters: Likewise.
        order: Rank correlation of the damping coefficient with F[y] over an image's exits, mean over test images.
        order_train: The same on training images.
        excess: How far an image's best exit has the larger coefficient than its exits on average, in percent, on test.
        excess_train: The same on training images.
        speed_up: Operations saved under a certificate, as the whole network's over the mean (`certified.Certified`).
        leaving: Share of images that is answered at each exit under it.
        epoch: The epoch whose accuracies these are, where it is not the last.
        clock: How `seconds` were taken.
        images: Of the test set: accuracies come in steps of 100 over it.
    """

    top1: tuple[float, ...]
    damping: tuple[float, ...] | None = None
    damping_train: tuple[float, ...] | None = None
    train_nll: tuple[float, ...] | None = None
    gamma: tuple[float, ...] | None = None
    weight: tuple[float, ...] | None = None
    seconds: float | None = None
    budgeted: tuple[float, ...] | None = None
    ece: tuple[float, ...] | None = None
    search: tuple[float, ...] | None = None
    learned: tuple[float, ...] | None = None
    damped: tuple[float, ...] | None = None
    reversed: tuple[float, ...] | None = None
    operations: tuple[float, ...] | None = None
    parameters: tuple[float, ...] | None = None
    order: tuple[float, ...] | None = None
    order_train: tuple[float, ...] | None = None
    excess: tuple[float, ...] | None = None
    excess_train: tuple[float, ...] | None = None
    speed_up: tuple[float, ...] | None = None
    leaving: tuple[float, ...] | None = None
    epoch: int | None = None
    clock: Clock | None = None
    images: int | None = None

    def timed_like(self, other: "Figures") -> bool:
        """Whether the two times may be set against each other: taken alike, and with nothing else going on."""
        if self.clock is None or other.clock is None:
            return self.clock is other.clock
        return self.clock.like(other.clock) and bool(self.clock.alone and other.clock.alone)

    @property
    def early(self) -> tuple[float, ...] | None:
        """Percent of images that leave before the last exit under the certificate."""
        return None if self.leaving is None else (100 * sum(self.leaving[:-1]),)

    @property
    def ece_early(self) -> tuple[float, ...] | None:
        """Calibration error of each exit but the last, in percent."""
        return None if self.ece is None else tuple(100 * value for value in self.ece[:-1])

    def values(self, what: What) -> tuple[float, ...] | None:
        """The figures of one kind, one per exit (one alone for seconds, one per budget under thresholds)."""
        if what == "seconds":
            return None if self.seconds is None else (self.seconds,)
        values: tuple[float, ...] | None = getattr(self, what.replace("-", "_"))
        return values


def of_manifest(manifest: Manifest, *, best_epoch: bool = False) -> Figures:
    """The figures of a finished run; `best_epoch`: accuracies of the epoch that was best on what was watched."""
    file = manifest.file
    exits, order, shares, promised = file.exits, file.order, file.xray, file.certified
    train = [exit.train for exit in exits]
    best = file.best_epoch if best_epoch else None
    return Figures(
        top1=best.top1 if best else tuple(exit.top1 for exit in exits),
        damping=_all(exit.damping for exit in exits),
        damping_train=_all(part.damping if part else None for part in train),
        train_nll=_all(part.nll if part else None for part in train),
        gamma=_all(file.last_stats.get("gamma") or [None]),
        weight=_all(file.last_stats.get("weight") or [None]),
        seconds=file.timing.seconds,
        budgeted=at_budgets(file.budgeted, exits[-1].operations) if file.budgeted else None,
        ece=_all(exit.ece for exit in exits),
        search=file.search_top1,
        operations=tuple(exit.operations for exit in exits),
        parameters=_all(exit.parameters for exit in exits),
        **{name: (value,) for name, value in (dataclasses.asdict(order) if order else {}).items()},
        **(dataclasses.asdict(shares) if shares else {}),
        speed_up=(promised.speed_up,) if promised else None,
        leaving=promised.leaving if promised else None,
        epoch=best.epoch if best else None,
        clock=_clock(file, manifest.undisturbed),
        images=file.test_images,
    )


def _clock(file: ManifestFile, undisturbed: bool | None) -> Clock:
    device, threads = file.made_by.device_name, file.made_by.threads
    moved = any((start.device_name, start.threads) != (device, threads) for start in file.starts)
    return Clock(device, threads, file.timing.jobs, moved, undisturbed)


def _all(values: Iterable[float | None]) -> tuple[float, ...] | None:
    kept = tuple(values)
    numbers = tuple(value for value in kept if value is not None)
    return numbers if len(numbers) == len(kept) else None


def at_budgets(points: Sequence[Sequence[float]], full_operations: float) -> tuple[float, ...]:
    """Accuracy at each of `BUDGETS` on the line between the points of a budgeted curve, nan outside of it."""
    ordered = sorted((operations / full_operations, accuracy) for operations, accuracy in points)
    return tuple(_between(ordered, share) for share in BUDGETS)


def _between(ordered: Sequence[tuple[float, float]], share: float) -> float:
    if share < ordered[0][0]:
        return math.nan
    for (x0, y0), (x1, y1) in itertools.pairwise(ordered):
        if x0 <= share <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    return ordered[-1][1]  # more than the dearest point spends: it can be spent, and nothing is gained


Key: TypeAlias = tuple[str, str]  # experiment and row


@dataclass(frozen=True)
class Results:
    """Figures by experiment and row, then by seed."""

    figures: Mapping[Key, Mapping[int, Figures]]

    def of(self, experiment: str, row: str) -> Mapping[int, Figures]:
        """Of one row, by seed; empty where there is none."""
        return self.figures.get((experiment, row), {})


def measured(experiments: Sequence[Experiment], seeds: Sequence[int], manifests: Mapping[str, Manifest]) -> Results:
    """What the runs of these experiments gave that are done."""
    return Results(
        {
            (experiment.name, row.label): {
                seed: _of_row(row, manifest)
                for seed in seeds
                if (manifest := manifest_of(row, seed, manifests)) is not None
            }
            for experiment in experiments
            for row in experiment.rows
        }
    )


def _of_row(row: Row, manifest: Manifest) -> Figures:
    """The figures that a row shows of a run; where its manifest does not say how many test images, as the setting."""
    figures = of_manifest(manifest, best_epoch=row.best_epoch)
    return figures if figures.images else dataclasses.replace(figures, images=row.setting.test_images)


def manifest_of(row: Row, seed: int, manifests: Mapping[str, Manifest]) -> Manifest | None:
    """The manifest of a row's run, checked to be of its configuration and whole; None where it is not done."""
    run = row.with_seed(seed)
    manifest = manifests.get(run_hash(run))
    if manifest is not None:
        manifest.check(run, row.num_exits)
    return manifest


@functools.cache
def published() -> Mapping[str, Any]:
    """The paper's tables: per table its data and number of runs, per row `top1`, and where printed `spread`, `damping`.

    `spread` is what the paper calls ±, very probably half the distance from the lowest run to the highest; `delta` the
    sum over exits less the first row's. Rows that are `copied` are from other authors, who trained by another recipe.
    """
    text = resources.files("offramp.paper").joinpath("published.json").read_text()
    tables: Mapping[str, Any] = json.loads(text)
    return tables


def published_row(experiment: Experiment, row: Row) -> Mapping[str, Any] | None:
    """The paper's figures of a row; None where it printed none."""
    table = published().get(experiment.name, {"rows": {}})
    printed: Mapping[str, Any] | None = table["rows"].get(row.label) if row.in_paper else None
    return printed


def has_delta(name: str) -> bool:
    """Whether the paper's table has a column Δ, the sum over exits less the first row's."""
    rows = published().get(name, {"rows": {}})["rows"].values()
    return any("delta" in theirs for theirs in rows)


def printed_digits(name: str) -> int:
    """How many decimals the paper prints in a table's accuracies."""
    rows = published()[name]["rows"].values()
    return max(len(repr(value).partition(".")[2]) for theirs in rows for value in theirs["top1"])


def printed_mean(theirs: Mapping[str, Any]) -> float:
    """The mean over exits of a published row: as printed where it is, else of its numbers."""
    return float(theirs.get("mean", fmean(theirs["top1"])))


def deviations(theirs: Mapping[str, Any]) -> tuple[list[float], float] | None:
    """Standard deviations of a published row's five runs, of each exit and of their mean; None where it has no ±.

    Each exit's ± is read as half the range. That of the mean may be either; read as a deviation it is the larger.
    """
    if "spread" not in theirs:
        return None
    return [half / statistics.HALF_RANGE_OF_FIVE for half in theirs["spread"]], theirs["mean_spread"]


def printed() -> Results:
    """The paper's own figures, as if of one seed."""
    figures = {
        (name, row): {0: Figures(tuple(values["top1"]), damping=values.get("damping") and tuple(values["damping"]))}
        for name, table in published().items()
        for row, values in table["rows"].items()
    }
    return Results(figures)


def mean_top1(figures: Figures) -> float:
    """The plain mean over exits."""
    return fmean(figures.top1)


def fewest_images(runs: Iterable[Figures]) -> int | None:
    """Of the smallest test set of these runs; None where none says how large it is."""
    return min((figures.images for figures in runs if figures.images), default=None)
