"""The plots of a run, as matplotlib figures. matplotlib is an extra and slow to import, so it is imported when drawing.

Colours are chosen here; `page` turns the neutral ones into variables of the page's light or dark theme.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from offramp.errors import UsageError
from offramp.evaluation import Anytime, Reliability
from offramp.evaluation.damping import EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#24292f", "#6a737d", "#d8dde3"  # text; secondary text; grid and frames
ACCENT = "#3d7ef0"
DEPTH = ("#3d7ef0", "#12a594", "#d99a00", "#e5484d")  # from the first exit to the last; legible on white and on black
GROUPS = ("#3d7ef0", "#e5484d", "#12a594", "#d99a00", "#8e5cd9", "#7b8794", "#d6409f", "#5b8c1f")
WIDTH = 7.4  # inches
ENOUGH = 10  # images in a bin of a reliability diagram for its bar to be drawn in full

STATISTICS = {  # of `metrics.jsonl`, in the paper's words
    "F_true": "softmax of the true class, F[y]",
    "F_damping": "damping neuron, F[N+1]",
    "a": "a = −log F[N+1]  (nats)",
    "gamma": "damping coefficient γ",
    "weight": "dynamic weight w",
    "off_or_reversed": "share with the true class's gradient off or reversed",
}


HOW_TO_GET_IT = "plots need matplotlib: pip install 'offramp[report]'"


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


def render(figure: "Figure", kind: Literal["svg", "png"], name: str, *, transparent: bool = False) -> bytes:
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
class Curve:
    """Accuracy against operations: a point per exit, and how far its bar reaches down and up, all in percent."""

    label: str
    operations: Sequence[float]
    top1: Sequence[float]
    down: Sequence[float]
    up: Sequence[float]


def accuracy(curves: Sequence[Curve]) -> "Figure":
    """Top-1 accuracy against operations; the points of a single curve are numbered."""
    figure, (axes,) = _figure(1, 1, 3.4)
    for colour, curve in zip(itertools.cycle(GROUPS), curves, strict=False):
        bars = (curve.down, curve.up)
        axes.errorbar(
            curve.operations, curve.top1, bars, color=colour, marker="o", markersize=5, capsize=2.5, label=curve.label
        )
    if len(curves) == 1:
        for k, point in enumerate(zip(curves[0].operations, curves[0].top1, strict=True), 1):
            axes.annotate(
                f"{k}", point, xytext=(-4, 5), textcoords="offset points", ha="right", color=MUTED, fontsize=8.5
            )
    else:
        figure.legend(loc="outside upper left", ncols=1 if max(len(curve.label) for curve in curves) > 40 else 2)
    axes.xaxis.set_major_formatter(lambda value, _: short(value, zeros=False))
    axes.set(xlabel="operations per image, with all heads on the way", ylabel="top-1 accuracy, %")
    axes.margins(x=0.06, y=0.12)
    return figure


def training(metrics: Sequence[Mapping[str, Any]]) -> "Figure":
    """Accuracy per exit, loss, learning rate and the objective's statistics against epochs; what is there is drawn."""
    from matplotlib.ticker import MaxNLocator

    searched = all(line.get("search_top1") is not None for line in metrics)
    measured = "search_top1" if searched else "train_top1"
    panels: list[tuple[str, Callable[[Mapping[str, Any]], Any]]] = [
        (f"top-1 on {'held-out' if searched else 'training'} images, %", lambda line: line.get(measured)),
        ("training loss (sum over exits)", lambda line: line.get("loss")),
        ("learning rate", lambda line: line.get("lr")),
    ]
    names = {name for line in metrics for name in line.get("stats", {})}
    if all(weight == 1 for line in metrics for weight in line.get("stats", {}).get("weight", ())):
        names.discard("weight")  # no dynamic weights: nothing to see
    order = [*(name for name in STATISTICS if name in names), *sorted(names - STATISTICS.keys())]
    panels += [(STATISTICS.get(n, n), lambda line, n=n: line.get("stats", {}).get(n)) for n in order]  # type: ignore[misc]
    panels = [(title, read) for title, read in panels if any(read(line) is not None for line in metrics)]
    rows = math.ceil(len(panels) / 2)
    figure, all_axes = _figure(rows, 2, 2.3 * rows, hide_after=len(panels))
    num_exits = 1
    for (title, read), axes in zip(panels, all_axes, strict=False):
        points = [(line["epoch"], _as_list(read(line))) for line in metrics if read(line) is not None]
        epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
        curves = list(zip(*values, strict=True))
        num_exits = max(num_exits, len(curves))
        colours = [INK] if len(curves) == 1 else depth_colours(len(curves))
        for curve, colour in zip(curves, colours, strict=True):
            axes.plot(epochs, curve, color=colour, marker="o" if len(epochs) < 2 else None)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    _exit_legend(figure, num_exits)
    return figure


def reliability(diagrams: Sequence[Reliability]) -> "Figure":
    """For each exit accuracy (bars) against confidence, the diagonal of perfect calibration, and where images lie."""
    rows = math.ceil(len(diagrams) / 4)
    columns = math.ceil(len(diagrams) / rows)
    figure, all_axes = _figure(rows, columns, 2.35 * rows, hide_after=len(diagrams), sharey=True)
    for k, (diagram, colour, axes) in enumerate(zip(diagrams, depth_colours(len(diagrams)), all_axes, strict=False), 1):
        bins = len(diagram.images)
        left = [b / bins for b in range(bins)]
        shares = [n / sum(diagram.images) for n in diagram.images]
        bars = axes.bar(left, [a or 0.0 for a in diagram.accuracy], 1 / bins, align="edge", color=colour, lw=0)
        for bar, images in zip(bars, diagram.images, strict=True):
            bar.set_alpha(0.8 if images >= ENOUGH else 0.25)
        axes.bar(left, [-0.16 * s / max(shares) for s in shares], 1 / bins, align="edge", color=MUTED, alpha=0.6, lw=0)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_title(f"exit {k} · ECE {diagram.ece:.3f}")
        axes.set(xlim=(0, 1), ylim=(-0.18, 1.0), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xlabel="confidence")
    for axes in all_axes[::columns]:
        axes.set_ylabel("accuracy")
    return figure


def damping(result: Anytime) -> "Figure":
    """How F[N+1] is distributed over the images, per exit, on a logarithmic axis."""
    figure, (axes,) = _figure(1, 1, 3.2)
    colours = depth_colours(len(result.exits))
    for exit, colour in zip(result.exits, colours, strict=True):
        if exit.damping is not None:
            shares = [100 * n / result.num_images for n in exit.damping.histogram]
            axes.stairs(shares, EDGES, color=colour, linewidth=1.7)
            axes.axvline(exit.damping.mean, color=colour, linewidth=1.1, linestyle=(0, (1.5, 2)))
    axes.set(xscale="log", xlim=(EDGES[0], 1), xlabel="F[N+1], probability of the damping neuron", ylabel="images, %")
    axes.set_ylim(bottom=0)
    _exit_legend(figure, len(result.exits))
    return figure


def short(count: float, *, zeros: bool = True) -> str:
    """A count in few characters: 812, 6.86 k, 12.0 M, 1.36 G; 12 M without `zeros`."""
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(count) >= size:
            value = count / size
            text = f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
            return (text if zeros or "." not in text else text.rstrip("0").rstrip(".")) + unit
    return f"{count:.3g}"


def _figure(
    rows: int, columns: int, height: float, *, hide_after: int | None = None, sharey: bool = False
) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for unused in axes[hide_after:] if hide_after is not None else []:
        unused.set_visible(False)
    return figure, axes


def _exit_legend(figure: "Figure", num_exits: int) -> None:
    if num_exits > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=colour, linewidth=2.2) for colour in depth_colours(num_exits)]
        labels = [f"exit {k}" for k in range(1, num_exits + 1)]
        figure.legend(lines, labels, loc="outside upper left", ncols=min(num_exits, 8), handlelength=1.1)


def _as_list(value: Any) -> list[float]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
