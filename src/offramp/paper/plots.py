"""The two figures of the paper that we draw, from our own runs alone: its points were never published as data.

And one of ours: what early exits are worth beside their top-1.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from offramp.paper import early_exits
from offramp.paper.experiments import Experiment
from offramp.paper.results import BUDGETS, Figures, Results
from offramp.show import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(experiment: Experiment, results: Results) -> "Figure | None":
    """The experiment's figure, None where it has none or nothing was run; inside `figures.style()`.

    It says itself what it was measured on where that is not the paper's.
    """
    drawn = None
    if experiment.shows == "threshold":
        drawn = _thresholds(experiment, results)
    elif experiment.shows == "budgeted":
        drawn = _budgets(experiment, results)
    elif early_exits.shown(experiment):
        drawn = _early_exits(experiment, results)
    if drawn is not None and experiment.scale.unlike:
        drawn.supxlabel(f"Measured {experiment.scale.unlike}", fontsize="small")
    return drawn


def _thresholds(experiment: Experiment, results: Results) -> "Figure | None":
    """Accuracy, and beside it the loss converged to, against the softmax above which gradients are discarded."""
    curves = [
        (100 * row.threshold, list(results.of(experiment.name, row.label).values()))
        for row in experiment.rows
        if row.threshold is not None and results.of(experiment.name, row.label)
    ]
    if not curves:
        return None
    figure, both = figures.panels(2, 3.0, columns=2)
    at = [threshold for threshold, _ in curves]
    accuracy = [[f.top1[-1] for f in of] for _, of in curves]
    loss = [[(f.values("train-nll") or [math.nan])[-1] for f in of] for _, of in curves]
    panels = (("top-1 on test, %", accuracy), ("loss converged to, nats", loss))
    for axes, (title, values) in zip(both, panels, strict=True):
        _with_range(axes, at, values, figures.GROUPS[0], "o", None)
        axes.set_title(title)
        axes.set_xlabel("gradients kept up to this softmax, %")
    return figure


def _budgets(experiment: Experiment, results: Results) -> "Figure | None":
    """A line a method, the mean over seeds, with the range of the seeds behind it."""
    curves_by_row: dict[str, list[Sequence[float]]] = {}
    for row in experiment.rows:
        seeds: Mapping[int, Figures] = results.of(experiment.name, row.label)
        curves = [curve for f in seeds.values() if (curve := f.values("budgeted"))]
        if curves:
            curves_by_row[row.label] = [list(values) for values in zip(*curves, strict=True)]
    if not curves_by_row:
        return None
    figure, (axes,) = figures.panels(1, 3.6 + 0.2 * math.ceil(len(curves_by_row) / 2))
    styles = zip(itertools.cycle(figures.GROUPS), itertools.cycle(figures.MARKERS), curves_by_row.items(), strict=False)
    for colour, marker, (label, values) in styles:
        _with_range(axes, [100 * budget for budget in BUDGETS], values, colour, marker, label)
    axes.set(xlabel="operations per image, % of the whole network", ylabel="top-1 on test, %: mean and range")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _early_exits(experiment: Experiment, results: Results) -> "Figure | None":
    """A line a method, a panel a figure: the difference to the first row, with its interval where seeds are several."""
    estimates = early_exits.by_row(experiment, results)
    if not estimates:
        return None
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1.3 * figures.WIDTH, 1.3 + 0.26 * len(estimates)), layout="constrained")
    panels = drawn.subplots(1, len(early_exits.FIGURES), sharey=True)
    for axes, figure, of in zip(panels, early_exits.FIGURES, zip(*estimates.values(), strict=True), strict=True):
        axes.axvline(0, color=figures.MUTED, linewidth=1)
        for at, each in enumerate(of):
            if each is not None:
                single = math.isinf(each.half)
                axes.errorbar(
                    [each.mean],
                    [at],
                    xerr=None if single else [each.half],
                    fmt="o",
                    color=figures.GROUPS[0],
                    fillstyle="none" if single else "full",
                    markersize=4.5,
                )
        if not any(of):
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=figures.MUTED)
        axes.set_title(figure.title, fontsize="small")
        axes.set_xlabel("more is better" if figure.better > 0 else "less is better")
    panels[0].set_yticks(range(len(estimates)), list(estimates))
    panels[0].invert_yaxis()
    drawn.suptitle(f"less {experiment.rows[0].label}, paired by seed, 95 % intervals", fontsize="small")
    return drawn


def _with_range(
    axes: "Axes", at: Sequence[float], values: Sequence[Sequence[float]], colour: str, marker: str, label: str | None
) -> None:
    means = [fmean(of) for of in values]
    axes.plot(at, means, color=colour, marker=marker, markersize=4.5, label=label)
    lows, highs = [min(of) for of in values], [max(of) for of in values]
    axes.fill_between(at, lows, highs, color=colour, alpha=0.1, linewidth=0)
