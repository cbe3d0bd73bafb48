"""What the paper printed, from `published.json`."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from statistics import fmean

from offramp.json_files import convert
from offramp.paper import statistics
from offramp.paper.experiments import Experiment, Row


@dataclass(frozen=True)
class PublishedRow:
    """A row of a table; what is not printed is None.

    Attributes:
        mean: Over exits.
        spread: What the paper calls ± of each exit, very probably half the distance from the lowest run to the highest.
        mean_spread: That of the mean.
        damping: F[N+1] of each exit on test.
        delta: The sum over exits less the first row's.
        copied: Whether it is from other authors, who trained by another recipe.
    """

    top1: tuple[float, ...]
    mean: float | None = None
    spread: tuple[float, ...] | None = None
    mean_spread: float | None = None
    damping: tuple[float, ...] | None = None
    delta: float | None = None
    copied: bool = False

    @property
    def mean_top1(self) -> float:
        """The mean over exits: as printed where it is, else of its numbers."""
        return fmean(self.top1) if self.mean is None else self.mean

    @property
    def deviations(self) -> tuple[float | None, ...]:
        """Standard deviations of its five runs, of each exit and of their mean; None where it has no ±.

        Each exit's ± is read as half the range. That of the mean may be either; read as a deviation it is the larger.
        """
        if self.spread is None:
            return (None,) * (len(self.top1) + 1)
        return (*(half / statistics.HALF_RANGE_OF_FIVE for half in self.spread), self.mean_spread)


@dataclass(frozen=True)
class PublishedCosts:
    """Parameters or operations of each exit, in a unit."""

    unit: float
    exits: tuple[float, ...]


@dataclass(frozen=True)
class PublishedTable:
    """A table, its data and number of runs, and `slip`: what it prints wrongly."""

    data: str
    runs: int
    rows: Mapping[str, PublishedRow] = field(default_factory=dict)
    parameters: PublishedCosts | None = None
    operations: PublishedCosts | None = None
    slip: str = ""

    @property
    def has_delta(self) -> bool:
        """Whether it has a column Δ, the sum over exits less the first row's."""
        return any(row.delta is not None for row in self.rows.values())

    @property
    def digits(self) -> int:
        """How many decimals it prints of accuracies."""
        return max(len(repr(value).partition(".")[2]) for row in self.rows.values() for value in row.top1)


@functools.cache
def published() -> Mapping[str, PublishedTable]:
    """The paper's tables."""
    text = resources.files("offramp.paper").joinpath("published.json").read_text()
    return convert(json.loads(text), dict[str, PublishedTable], "published.json", exact=True)


def published_table(name: str) -> PublishedTable:
    """One of them; one without rows for an experiment that the paper did not print."""
    return published().get(name, PublishedTable("", 0))


def published_row(experiment: Experiment, row: Row) -> PublishedRow | None:
    """The paper's figures of a row; None where it printed none."""
    return published_table(experiment.name).rows.get(row.label) if row.in_paper else None
