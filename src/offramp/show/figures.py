"""The plots of a run, as matplotlib figures. matplotlib is an extra and slow to import, so it is imported when drawing.

Colours are chosen here; `page` turns the neutral ones into variables of the page's light or dark theme.
"""

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from statistics import fmean
from typing import TYPE_CHECKING, Any

from offramp.choices import Plots
from offramp.errors import UsageError
from offramp.evaluation import Anytime, Reliability
from offramp.evaluation.damping import EDGES
from offramp.results.evaluation import Evaluation
from offramp.terminal import say, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#24292f", "#6a737d", "#d8dde3"  # text; secondary text; grid and frames
DEPTH = ("#3d7ef0", "#12a594", "#d99a00", "#e5484d")  # from the first exit to the last; legible on white and on black
# Okabe and Ito's colours for every kind of colour vision, without those that vanish on white or on black.
GROUPS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
MARKERS = "os^DvPX"  # one more than colours: 42 groups differ in one or the other
WIDTH = 7.4  # inches
ENOUGH = 10  # images in a bin of a reliability diagram for its bar to be drawn in full
STEADY = 0.05  # curves that stay within this share of their mean get an axis from 0, or jitter would fill the panel

STATISTICS = {  # of `metrics.jsonl`, in the paper's words
    "F_true": "softmax of the true class, F[y]",
    "F_damping": "damping neuron, F[N+1]",
    "a": "a = −log F[N+1]  (nats)",
    "gamma": "damping coefficient γ",
    "weight": "dynamic weight w",
    "off_or_reversed": "share with y's gradient off or reversed",
}


HOW_TO_GET_IT = "plots need matplotlib: pip install 'offramp[report]'"


def note_missing(page: str) -> None:
    """Say that a page was not written, where it was not, and how to get it."""
    if not available():
        say(f"No {page}: {HOW_TO_GET_IT}")


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require() -> None:
    """Refuse to draw without matplotlib, saying how to get it."""
    if not available():
        raise UsageError(f"{HOW_TO_GET_IT[0].upper()}{HOW_TO_GET_IT[1:]}.")


def style() -> "AbstractContextManager[None]":
    """The look of all figures; drawing and rendering both happen inside it."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "font.size": 9.5,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": LINE,
            "axes.labelcolor": MUTED,
            "axes.titlecolor": INK,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": LINE,
            "grid.linewidth": 0.6,
            "xtick.color": LINE,
            "ytick.color": LINE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "text.color": INK,
            "legend.frameon": False,
            "legend.labelcolor": INK,
            "lines.linewidth": 1.7,
            "svg.fonttype": "none",  # text stays text: smaller, searchable, in the page's font
        }
    )


def render(figure: "Figure", kind: Plots, name: str, *, transparent: bool = False) -> bytes:
    """The figure as a file's content; the same figure gives the same bytes. `name` keeps ids of several SVGs apart."""
    import matplotlib

    buffer = BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=nothing, transparent=transparent)
    return buffer.getvalue()


def depth_colours(num_exits: int) -> list[str]:
    """One colour per exit, from the shallowest to the deepest."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = LinearSegmentedColormap.from_list("depth", DEPTH)
    return [to_hex(scale(k / max(1, num_exits - 1))) for k in range(num_exits)]


@dataclass(frozen=True)
class PlotCurve:
    """Accuracy against operations: a point per exit, all in percent.

    Attributes:
        operations: Of each exit, cumulative.
        top1: Of each exit.
        reach: How far the bar of each exit reaches down and up; empty for no bars.
    """

    label: str
    operations: Sequence[float]
    top1: Sequence[float]
    reach: Sequence[tuple[float, float]] = ()


def accuracy(curves: Sequence[PlotCurve], ylabel: str = "top-1 accuracy, %") -> "Figure":
    """Top-1 accuracy against operations, each curve at its own; the points of a single curve are numbered."""
    labels = [textwrap.fill(curve.label, 85) for curve in curves]  # a line of the figure holds about 90
    columns = 1 if max(map(len, labels)) > 40 else 2
    lines = sum(label.count("\n") + 1 for label in labels) / columns
    figure, (axes,) = panels(1, 3.2 + 0.2 * lines)
    styles = zip(itertools.cycle(GROUPS), itertools.cycle(MARKERS), curves, labels, strict=False)
    for colour, marker, curve, label in styles:
        axes.errorbar(
            curve.operations,
            curve.top1,
            list(zip(*curve.reach, strict=True)) or None,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2.5,
            label=label,
        )
    if len(curves) == 1:
        number(axes, curves[0].operations, curves[0].top1, xytext=(-4, 5), ha="right")
    else:
        figure.legend(loc="outside upper left", ncols=columns)
    _against_operations(axes, ylabel)
    return figure


def budgeted(exits: PlotCurve, published: PlotCurve, searched: PlotCurve, policy: PlotCurve) -> "Figure":
    """Accuracy against expected operations: what thresholds do, and beside it the exits alone, numbered."""
    figure, (axes,) = panels(1, 3.7)
    published_order = sorted(zip(published.operations, published.top1, strict=True))
    axes.plot(*zip(*published_order, strict=True), color=GROUPS[0], marker="o", markersize=3, label=published.label)
    bars = list(zip(*exits.reach, strict=True)) or None
    axes.errorbar(
        exits.operations, exits.top1, bars, color=MUTED, fmt="D", markersize=5, capsize=2.5, lw=1, label=exits.label
    )
    for curve, marker, size, colour in ((searched, "s", 5.5, GROUPS[2]), (policy, "*", 13, GROUPS[1])):
        axes.plot(
            curve.operations, curve.top1, marker, markersize=size, color=colour, label=curve.label, zorder=3, alpha=0.9
        )
    number(axes, exits.operations, exits.top1)
    figure.legend(loc="outside upper left", ncols=2)
    _against_operations(axes, "top-1 accuracy, %")
    return figure


def number(axes: "Axes", x: Sequence[float], y: Sequence[float], **more: Any) -> None:
    """Write the number of each point, from 1, beside it: below, to the right."""
    place = {"xytext": (6, -9), "color": MUTED, **more}
    for k, point in enumerate(zip(x, y, strict=True), 1):
        axes.annotate(f"{k}", point, textcoords="offset points", fontsize=8.5, **place)


def _against_operations(axes: "Axes", ylabel: str) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: short(value, zeros=False))
    axes.set(xlabel="operations per image, with all heads on the way", ylabel=ylabel)
    axes.margins(x=0.06, y=0.12)


def training(evaluation: Evaluation) -> "Figure":
    """Accuracy per exit, loss, learning rate and the objective's statistics against epochs; what is there is drawn."""
    from matplotlib.ticker import MaxNLocator

    metrics = evaluation.metrics
    searched = all(line.search_top1 is not None for line in metrics)
    accuracy_title = f"top-1 on {'held-out' if searched else 'training'} images, %"
    curves_of: list[tuple[str, Callable[[Any], Any]]] = [
        (accuracy_title, lambda line: line.search_top1 if searched else line.train_top1),
        ("training loss (sum over exits)", lambda line: line.loss),
        ("learning rate", lambda line: line.lr),
    ]
    names = {name for line in metrics for name in line.stats}
    if all(weight == 1 for line in metrics for weight in line.stats.get("weight", ())):
        names.discard("weight")  # no dynamic weights: nothing to see
    order = [*(name for name in STATISTICS if name in names), *sorted(names - STATISTICS.keys())]
    curves_of += [(STATISTICS.get(n, n), lambda line, n=n: line.stats.get(n)) for n in order]  # type: ignore[misc]
    curves_of = [(title, read) for title, read in curves_of if any(read(line) is not None for line in metrics)]
    figure, all_axes = panels(len(curves_of), 2.3, columns=2)
    num_exits = 1
    for (title, read), axes in zip(curves_of, all_axes, strict=True):
        points = [(line.epoch, _as_list(read(line))) for line in metrics if read(line) is not None]
        epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
        curves = list(zip(*values, strict=True))
        num_exits = max(num_exits, len(curves))
        colours = [INK] if len(curves) == 1 else depth_colours(len(curves))
        for curve, colour in zip(curves, colours, strict=True):
            axes.plot(epochs, curve, color=colour, marker="o" if len(epochs) < 2 else None)
        if title != accuracy_title and _steady(curves):
            axes.set_ylim(0, 1.3 * max(itertools.chain(*curves)))
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    exit_legend(figure, num_exits)
    return figure


def reliability(diagrams: Sequence[Reliability]) -> "Figure":
    """For each exit accuracy (bars) against confidence, the diagonal of perfect calibration, and where images lie."""
    columns = math.ceil(len(diagrams) / math.ceil(len(diagrams) / 4))
    figure, all_axes = panels(len(diagrams), 2.35, columns=columns)
    for k, (diagram, colour, axes) in enumerate(zip(diagrams, depth_colours(len(diagrams)), all_axes, strict=True), 1):
        bins = len(diagram.images)
        left = [b / bins for b in range(bins)]
        shares = [n / sum(diagram.images) for n in diagram.images]
        bars = axes.bar(left, [a or 0.0 for a in diagram.accuracy], 1 / bins, align="edge", color=colour, lw=0)
        for bar, images in zip(bars, diagram.images, strict=True):
            bar.set_alpha(0.8 if images >= ENOUGH else 0.25)
        axes.bar(left, [-0.16 * s / max(shares) for s in shares], 1 / bins, align="edge", color=MUTED, alpha=0.6, lw=0)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_title(f"exit {k} · ECE {diagram.ece:.3f}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(-0.18, 1.0), yticks=[0, 0.5, 1], xlabel="confidence")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        first, _, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")  # inside their own panel, clear of the next one's
        last.set_horizontalalignment("right")
        axes.tick_params(labelleft=k % columns == 1 or columns == 1)
    for axes in all_axes[::columns]:
        axes.set_ylabel("accuracy")
    return figure


def damping(result: Anytime) -> "Figure":
    """How F[N+1] is distributed over the images, per exit, on a logarithmic axis."""
    figure, (axes,) = panels(1, 3.2)
    colours = depth_colours(len(result.exits))
    for exit, colour in zip(result.exits, colours, strict=True):
        if exit.damping is not None:
            shares = [100 * n / result.num_images for n in exit.damping.histogram]
            axes.stairs(shares, EDGES, color=colour, linewidth=1.7)
            axes.axvline(exit.damping.mean, color=colour, linewidth=1.1, linestyle=(0, (1.5, 2)))
    axes.set(xscale="log", xlim=(EDGES[0], 1), xlabel="F[N+1], probability of the damping neuron", ylabel="images, %")
    axes.set_ylim(bottom=0)
    exit_legend(figure, len(result.exits))
    return figure


def panels(count: int, height: float, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """So many panels of equal size, in rows of `height` inches; what the last row has fewer stands in the middle."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    halves = figure.add_gridspec(rows, 2 * columns)
    missing = rows * columns - count
    axes = []
    for number in range(count):
        row, column = divmod(number, columns)
        left = 2 * column + (missing if row == rows - 1 else 0)
        axes.append(figure.add_subplot(halves[row, left : left + 2]))
    return figure, axes


def _steady(curves: Sequence[Sequence[float]]) -> bool:
    values = list(itertools.chain(*curves))
    return min(values) > 0 and max(values) - min(values) < STEADY * fmean(values)


def exit_legend(figure: "Figure", num_exits: int) -> None:
    """The colours of the exits, above the panels; nothing for one exit."""
    if num_exits > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=colour, linewidth=2.2) for colour in depth_colours(num_exits)]
        labels = [f"exit {k}" for k in range(1, num_exits + 1)]
        figure.legend(lines, labels, loc="outside upper left", ncols=min(num_exits, 8), handlelength=1.1)


def _as_list(value: Any) -> list[float]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
