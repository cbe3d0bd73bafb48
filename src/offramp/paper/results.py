"""Figures by row and seed: what finished runs gave, and what the paper printed, in one form.

K exits. Tables and claims read nothing else.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np

from offramp.paper.experiments import Experiment, Row
from offramp.paper.identity import run_hash
from offramp.paper.manifest import MadeBy, Manifest, ManifestFile
from offramp.paper.published import published

What = Literal[
    "top1",  # accuracy of each exit on the test set, in percent
    "damping",  # mean of F[N+1] of each exit on the test set
    "damping-train",  # the same on training images with test transforms
    "train-nll",  # negative log-likelihood of each exit on training images, in nats: the loss it converged to
    "gamma",  # damping coefficient of each exit, its mean over the last epoch of training
    "weight",  # weight of each exit, likewise
    "seconds",  # of training: one number
    "budgeted",  # accuracy at each of `BUDGETS` under thresholds, in percent
    "ece",  # expected calibration error of each exit on the test set, from 0 to 1
    "search",  # accuracy of each exit on `search` after the last epoch, in percent
    "learned",  # share of each exit's push that comes from learned images, over all epochs
    "damped",  # share of images whose gradient is damped, likewise
    "reversed",  # share of images whose gradient is reversed, likewise
    "operations",  # of each exit, with all heads on the way
    "parameters",  # likewise
    "order",  # rank correlation of the damping coefficient with F[y] over an image's exits, mean over test images
    "order-train",  # the same on training images
    "excess",  # how far an image's best exit has the larger coefficient than its exits on average, in percent, on test
    "excess-train",  # the same on training images
    "speed-up",  # operations saved under a certificate, the whole network's over the mean (`certified.Certified`)
    "leaving",  # share of images that is answered at each exit under it
    "early",  # percent of images that leave before the last exit under it
    "ece-early",  # calibration error of each exit but the last, in percent
]
BUDGETS = tuple(tenth / 10 for tenth in range(3, 11))  # shares of the whole network's operations


@dataclass(frozen=True)
class Clock:
    """Under which conditions a run's time was taken: times of others say nothing about a method.

    Attributes:
        device: Its name; of a processor that its manifest does not name (older ones), `cpu`.
        form: Of training; None where its manifest does not say (older ones).
        moved: Whether the run was begun on another device, with other threads or in another form; then its time is
            like no other.
        alone: Whether the machine did nothing else meanwhile; None where the manifest does not say.
    """

    device: str
    threads: int
    jobs: int
    form: str | None = None
    moved: bool = False
    alone: bool | None = None

    def __str__(self) -> str:
        runs = "one run at a time" if self.jobs == 1 else f"{self.jobs} runs side by side"
        beside = {True: "", False: ", other work beside", None: ", other work not recorded"}[self.alone]
        begun = ", begun elsewhere" if self.moved else ""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        form = f", {self.form}" if self.form else ""
        return f"{self.device}, {threads}{form}, {runs} by this command{beside}{begun}"

    def like(self, other: "Clock") -> bool:
        """Whether device, threads, form and runs side by side were the same, whatever else the machine did."""
        mine = dataclasses.replace(self, alone=other.alone)
        return mine == other and not self.moved


@dataclass(frozen=True)
class Figures:
    """What one run gave, or a row of the paper.

    Attributes:
        numbers: By kind, what there is: mostly one per exit.
        epoch: The epoch whose accuracies these are, where it is not the last.
        clock: How its seconds were taken.
        images: Of the test set: accuracies come in steps of 100 over it.
    """

    numbers: Mapping[What, tuple[float, ...]]
    epoch: int | None = None
    clock: Clock | None = None
    images: int | None = None

    def timed_like(self, other: "Figures") -> bool:
        """Whether the two times may be set against each other: taken alike, and with nothing else going on."""
        if self.clock is None or other.clock is None:
            return self.clock is other.clock
        return self.clock.like(other.clock) and bool(self.clock.alone and other.clock.alone)

    @property
    def top1(self) -> tuple[float, ...]:
        """Of each exit, in percent."""
        return self.numbers["top1"]

    @property
    def seconds(self) -> float | None:
        """Of training."""
        return self.numbers["seconds"][0] if "seconds" in self.numbers else None

    def values(self, what: What) -> tuple[float, ...] | None:
        """The figures of one kind; None where there are none."""
        return self.numbers.get(what)


def of_manifest(manifest: Manifest, *, best_epoch: bool = False) -> Figures:
    """The figures of a finished run; `best_epoch`: accuracies of the epoch that was best on what was watched."""
    file = manifest.file
    exits, order, shares, promised = file.exits, file.order, file.xray, file.certified
    best = file.best_epoch if best_epoch else None
    train = [exit.train for exit in exits]
    numbers: dict[What, Iterable[float | None] | None] = {
        "top1": best.top1 if best else [exit.top1 for exit in exits],
        "damping": [exit.damping for exit in exits],
        "damping-train": [None if of is None else of.damping for of in train],
        "train-nll": [None if of is None else of.nll for of in train],
        "gamma": file.last_stats.get("gamma"),
        "weight": file.last_stats.get("weight"),
        "seconds": [file.timing.seconds],
        "budgeted": at_budgets(file.budgeted, exits[-1].operations) if file.budgeted else None,
        "ece": [exit.ece for exit in exits],
        "search": file.search_top1,
        "operations": [exit.operations for exit in exits],
        "parameters": [exit.parameters for exit in exits],
    }
    if promised is not None:
        numbers |= {"speed-up": [promised.speed_up], "leaving": promised.leaving}
        numbers["early"] = [100 * sum(promised.leaving[:-1])]
    if all(exit.ece is not None for exit in exits):
        numbers["ece-early"] = [100 * exit.ece for exit in exits[:-1] if exit.ece is not None]
    if shares is not None:
        numbers |= {"learned": shares.learned, "damped": shares.damped, "reversed": shares.reversed}
    if order is not None:
        numbers |= {"order": [order.order], "order-train": [order.order_train]}
        numbers |= {"excess": [order.excess], "excess-train": [order.excess_train]}
    whole = {what: all_of for what, of in numbers.items() if of is not None and (all_of := _all(of))}
    return Figures(whole, best.epoch if best else None, _clock(file, manifest.undisturbed), file.test_images)


def _clock(file: ManifestFile, undisturbed: bool | None) -> Clock:
    how = _how(file.made_by)
    moved = any(_how(start) != how for start in file.starts)
    device, threads, form = how
    return Clock(device, threads, file.timing.jobs, form, moved, undisturbed)


def _how(start: MadeBy) -> tuple[str, int, str | None]:
    return start.device_name, start.threads, start.form


def _all(values: Iterable[float | None]) -> tuple[float, ...] | None:
    kept = tuple(values)
    numbers = tuple(value for value in kept if value is not None)
    return numbers if len(numbers) == len(kept) else None


def at_budgets(points: Sequence[Sequence[float]], full_operations: float) -> tuple[float, ...]:
    """Accuracy at each of `BUDGETS` on the line between the points of a budgeted curve, nan below all of them.

    Above all of them it is that of the dearest: more can be spent, and nothing is gained.
    """
    shares, accuracies = zip(*sorted((operations / full_operations, top1) for operations, top1 in points), strict=True)
    return tuple(np.interp(BUDGETS, shares, accuracies, left=math.nan).tolist())


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


def printed() -> Results:
    """The paper's own figures, as if of one seed."""
    figures: dict[Key, Mapping[int, Figures]] = {}
    for name, table in published().items():
        for label, row in table.rows.items():
            numbers: dict[What, tuple[float, ...]] = {"top1": row.top1}
            figures[name, label] = {0: Figures(numbers if row.damping is None else {**numbers, "damping": row.damping})}
    return Results(figures)


def mean_top1(figures: Figures) -> float:
    """The plain mean over exits."""
    return fmean(figures.top1)


def fewest_images(runs: Iterable[Figures]) -> int | None:
    """Of the smallest test set of these runs; None where none says how large it is."""
    return min((figures.images for figures in runs if figures.images), default=None)
