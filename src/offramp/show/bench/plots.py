"""The plots of what was measured: accuracy against operations, and against time."""

import math
from typing import TYPE_CHECKING, Any

from offramp.choices import Plots
from offramp.costs import Cost
from offramp.evaluation import Record, budgeted, curve, search_thresholds
from offramp.results.bench import Bench
from offramp.results.dynamic import BUDGETS
from offramp.show import figures
from offramp.terminal import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "linestyle": "none", "color": figures.GROUPS[1], "zorder": 3}
EXITS: dict[str, Any] = {"marker": "D", "markersize": 5, "linewidth": 1, "color": figures.MUTED}


def drawn(bench: Bench, search: Record | None, test: Record, costs: Cost, kind: Plots) -> dict[str, bytes]:
    """The plots by name, as files' contents; without a record of `search` no thresholds are varied."""
    with figures.style():
        plots = {"bench-operations": _operations(bench, search, test, costs), "bench-time": times(bench)}
        return {name: figures.render(figure, kind, name) for name, figure in plots.items()}


def _operations(bench: Bench, search: Record | None, test: Record, costs: Cost) -> "Figure":
    figure, (axes,) = figures.panels(1, 3.9)
    if search is not None:
        measure = bench.policy.measure
        published = sorted((p.operations, p.accuracy) for p in budgeted(search, test, costs, measure=measure).points)
        axes.plot(
            *zip(*published, strict=True),
            "o-",
            markersize=3,
            color=figures.GROUPS[0],
            label="geometric shares, all heads",
        )
        first, last = costs.exits[0].operations, costs.exits[-1].operations
        budgets = [first + (last - first) * step / BUDGETS for step in range(1, BUDGETS + 1)]
        searched = curve(search_thresholds(search, costs, budgets, measure=measure), test, costs).points
        points = [(point.operations, point.accuracy) for point in searched]
        axes.plot(
            *zip(*points, strict=True),
            "s",
            markersize=5.5,
            color=figures.GROUPS[2],
            label="searched thresholds, all heads",
        )
    top1 = [exit.top1 for exit in bench.exits]
    operations = [exit.operations for exit in bench.exits]
    axes.plot(operations, top1, **EXITS, label="network cut at one exit")
    figures.number(axes, operations, top1)
    axes.plot(bench.operations, bench.accuracy.top1, **STAR, label="engine, heads that may answer")
    figure.legend(loc="outside upper left", ncols=2)
    axes.xaxis.set_major_formatter(lambda value, _: short(value, zeros=False))
    axes.set(xlabel="operations per image", ylabel="top-1 accuracy, %")
    axes.margins(x=0.06, y=0.12)
    return figure


def times(bench: Bench) -> "Figure":
    """A panel for each way of feeding the engine: accuracy against milliseconds per image."""
    from matplotlib.figure import Figure

    rows, top1 = math.ceil(len(bench.modes) / 2), [exit.top1 for exit in bench.exits]
    figure = Figure(figsize=(figures.WIDTH, 2.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, 2, sharey=True, squeeze=False).flatten()
    for axes, mode in zip(panels, bench.modes.values(), strict=False):
        exit_ms = [exit.ms for exit in mode.exits]
        axes.plot(exit_ms, top1, **EXITS, label="network cut at one exit")
        figures.number(axes, exit_ms, top1)
        axes.plot(mode.engine.ms, mode.accuracy.top1, **STAR, label="engine")
        axes.set(title=mode.title, xlabel="milliseconds per image")
        axes.set_xlim(0, 1.1 * max(*exit_ms, mode.engine.ms))
        axes.locator_params("x", nbins=5)
        axes.margins(y=0.14)
    for axes in panels[len(bench.modes) :]:
        axes.remove()
    for axes in panels[::2]:
        axes.set_ylabel("top-1 accuracy, %")
    lines = {label: line for line, label in zip(*panels[0].get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside upper left", ncols=2)
    return figure
