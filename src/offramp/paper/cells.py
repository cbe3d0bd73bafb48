"""Tables of text with links, which the page and the Markdown file both show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.evaluation.spread import Spread
from offramp.paper.experiments import Row
from offramp.paper.identity import run_hash
from offramp.show.side_by_side import spread_text

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A text of one line or more.

    Attributes:
        to: Where on the page it leads; nowhere if None.
        rows: Of what is made of the runs of several rows: their names, and where each leads.
    """

    text: str
    to: str | None = None
    rows: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """A table with one line said of it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def anchor(row: Row) -> str:
    """Where the page lists the runs of a row: rows that share their runs share it."""
    return f"runs-{run_hash(row.run)}"


def linked(row: Row, text: str) -> Cell:
    """A number that leads to the row's runs, where there is one."""
    return Cell(text) if text == NOTHING else Cell(text, anchor(row))


def spread(row: Row, values: Sequence[float]) -> Cell:
    """Accuracies over seeds: mean, standard deviation, half-range."""
    if not values or any(map(math.isnan, values)):
        return Cell(NOTHING)
    return Cell(spread_text(Spread.of(values)), anchor(row))


def number(row: Row, values: Sequence[float], digits: int) -> Cell:
    """Numbers over seeds: mean and standard deviation."""
    if not values or any(map(math.isnan, values)):
        return Cell(NOTHING)
    of = Spread.of(values)
    deviation = "" if of.std is None else f" ±{of.std:.{digits}f}"
    return Cell(f"{of.mean:.{digits}f}{deviation}", anchor(row))


def exit_names(num_exits: int) -> tuple[str, ...]:
    """The head of a table with a column an exit."""
    return ("last exit",) if num_exits == 1 else tuple(f"exit {k}" for k in range(1, num_exits + 1))
