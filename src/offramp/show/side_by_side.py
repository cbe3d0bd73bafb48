"""A comparison as tables: in the terminal, as Markdown, as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from offramp.choices import Plots
from offramp.evaluation.spread import Spread
from offramp.results.comparison import Comparison, Group, Paired
from offramp.show import figures
from offramp.show.page import inline_svg, markdown_row, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND = (
    "Top-1 in percent: mean ± standard deviation (half-range) over n seeds; a run's own report gives the standard "
    "error over test images instead. The half-range is half the distance from the lowest run to the highest. Paired: "
    "differences seed by seed, where both have the seed, as many exits and the same test set."
)


@dataclass(frozen=True)
class TextTable:
    """A table of plain text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(comparison: Comparison) -> list[TextTable]:
    """The mean over exits of each group, then every exit."""
    groups = comparison.groups
    paired = [comparison.against_first(group) for group in groups]
    summary = TextTable(
        "Mean over exits",
        ["", "n", "mean over exits", *(["against the first, paired"] if any(paired) else [])],
        [
            [
                group.label,
                str(len(group.runs)),
                spread_text(group.mean_top1),
                *([_paired_text(p)] if any(paired) else []),
            ]
            for group, p in zip(groups, paired, strict=True)
        ],
    )
    columns = [
        [spread_text(group.exit(k, "top1")) for k in range(group.num_exits)] + [spread_text(group.mean_top1)]
        for group in groups
    ]
    names = [*(str(k + 1) for k in range(max(group.num_exits for group in groups)))]
    exits = [
        [name, *row] for name, row in zip(names, zip_longest(*(c[:-1] for c in columns), fillvalue=""), strict=True)
    ]
    exits.append(["mean", *(column[-1] for column in columns)])
    return [summary, TextTable("Every exit", ["exit", *(g.label for g in groups)], exits)]


def spread_text(spread: Spread | None, sign: str = "") -> str:
    """`70.39 ±0.14 (0.16)`: mean, standard deviation, half-range; the mean alone for one run."""
    if spread is None:
        return ""
    spreads = "" if spread.std is None else f" ±{spread.std:.2f} ({spread.half_range:.2f})"
    return f"{spread.mean:{sign}.2f}{spreads}"


def _paired_text(paired: Paired | None) -> str:
    return "" if paired is None else f"{spread_text(paired.mean_top1, '+')}, n = {paired.mean_top1.n}"


def on_terminal(comparison: Comparison) -> RenderableType:
    """Both tables for a terminal."""
    drawn = []
    for table in tables(comparison):
        rich_table = Table(box=SIMPLE_HEAD, pad_edge=False, title=table.title, title_justify="left", title_style="bold")
        for number, name in enumerate(table.head):
            rich_table.add_column(Text(name), justify="left" if number == 0 else "right")
        for row in table.rows:
            rich_table.add_row(*map(Text, row))
        drawn.append(rich_table)
    return Lines(*drawn, Text(LEGEND))


def markdown(comparison: Comparison) -> str:
    """Both tables as Markdown."""
    lines = []
    for table in tables(comparison):
        lines += [
            f"**{table.title}**",
            "",
            markdown_row(table.head),
            markdown_row(["---", *["---:"] * (len(table.head) - 1)]),
        ]
        lines += [markdown_row(row) for row in table.rows] + [""]
    return "\n".join([*lines, LEGEND, ""])


def plot(comparison: Comparison, kind: Plots) -> bytes:
    """Accuracy against operations, a line per group, as a file's content; needs matplotlib."""
    with figures.style():
        return figures.render(_accuracy(comparison), kind, "accuracy")


def html(comparison: Comparison) -> str:
    """Both tables, and accuracy against operations where matplotlib is installed, as one page."""
    drawn = None
    if figures.available():
        with figures.style():
            drawn = inline_svg(_accuracy(comparison), "accuracy")
    return page(
        "compare.html.j2",
        title="Runs side by side",
        comparison=comparison,
        tables=tables(comparison),
        legend=LEGEND,
        plot=drawn,
        no_plot=figures.HOW_TO_GET_IT,
    )


def _accuracy(comparison: Comparison) -> "Figure":
    seeds = max(len(group.runs) for group in comparison.groups)
    ylabel = "top-1, %" if seeds == 1 else "top-1, %: mean and range"
    return figures.accuracy([_curve(group) for group in comparison.groups], ylabel)


def _curve(group: Group) -> figures.PlotCurve:
    n = len(group.runs)
    top1 = [[run.figures.exits[k].top1 for run in group.runs] for k in range(group.num_exits)]
    means = [fmean(values) for values in top1]
    # At least 0: the mean of equal values may be off by rounding.
    reach = [
        (max(0.0, mean - min(values)), max(0.0, max(values) - mean)) for mean, values in zip(means, top1, strict=True)
    ]
    return figures.PlotCurve(f"{group.label}, n = {n}", group.operations, means, reach if n > 1 else ())
