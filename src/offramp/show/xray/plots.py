"""The plots of a record of gradients, as matplotlib figures; to be called inside `figures.style()`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offramp.evaluation.error_detection import ErrorDetection
from offramp.results.xray import XrayReport
from offramp.show import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATE_COLOURS = ("#56b4e9", "#e69f00", "#d55e00")  # needed, damped, reversed
STEPS = 100  # of a panel, at most: a run of 300 epochs is shown three epochs a step, or its page would have 2 MB
BAND_COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00")  # from unsure to sure


def draw(report: XrayReport) -> "dict[str, Figure]":
    """The plots by name."""
    xray, errors = report.record, report.error_detection
    drawn = {
        "shares": _stacked(report, xray.shares(), xray.STATES, STATE_COLOURS, "watched images, %"),
        "sources": _stacked(report, xray.sources(), _band_names(xray.BANDS), BAND_COLOURS, "upward push, %"),
        "learned": _learned(report),
    }
    if xray.gamma_EKW is not None or xray.weight_EKW is not None:
        drawn["coefficients"] = _coefficients(report)
    if errors is not None:
        drawn["errors"] = _error_detection(errors)
    return drawn


def _band_names(bands: Sequence[float]) -> tuple[str, ...]:
    """`F[y] below 0.7`, `0.7 to 0.8`, ..., `0.95 and above`."""
    between = (f"{low:g} to {high:g}" for low, high in pairwise(bands))
    return (f"F[y] below {bands[0]:g}", *between, f"{bands[-1]:g} and above")


def epochs_a_step(num_epochs: int) -> int:
    """Of how many epochs a step of a panel is the mean."""
    return -(-num_epochs // STEPS)


def _stacked(
    report: XrayReport, shares_SEK: Tensor, names: Sequence[str], colours: Sequence[str], ylabel: str
) -> "Figure":
    """Shares that add up to 1 or to 0, one over the other, a panel an exit; in steps, so that one epoch shows too."""
    from matplotlib.patches import Patch

    xray, K = report.record, report.record.num_exits
    columns = min(K, 4)
    figure, all_axes = figures.panels(K, 2.1, columns=columns)
    together = epochs_a_step(len(xray.epochs_E))
    starts = xray.epochs_E[::together].tolist()
    edges = [*(epoch - 0.5 for epoch in starts), float(xray.epochs_E[-1]) + 0.5]
    steps_SEK = torch.stack([part_SEK.mean(1) for part_SEK in torch.split(shares_SEK, together, dim=1)], dim=1)
    for k, axes in enumerate(all_axes):
        shares = (100 * steps_SEK[:, :, k]).tolist()
        low = [0.0] * (len(edges) - 1)
        for share, colour in zip(shares, colours, strict=True):
            high = [a + b for a, b in zip(low, share, strict=True)]
            axes.fill_between(edges, [*low, low[-1]], [*high, high[-1]], step="post", color=colour, lw=0)
            low = high
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 100), title=f"exit {k + 1}", xlabel="epoch")
        axes.tick_params(labelleft=k % columns == 0)
        _whole(axes)
    for axes in all_axes[::columns]:
        axes.set_ylabel(ylabel)
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), handlelength=1.1)
    return figure


def _learned(report: XrayReport) -> "Figure":
    """For each exit how many of the watched images it has learned for good by each epoch."""
    figure, (axes,) = figures.panels(1, 3.0)
    xray, learned_KW = report.record, report.record.learned()
    epochs = xray.epochs_E.tolist()
    for learned_W, colour in zip(learned_KW, figures.depth_colours(xray.num_exits), strict=True):
        by_then = [((learned_W > 0) & (learned_W <= epoch)).double().mean().item() for epoch in epochs]
        axes.plot(epochs, [100 * share for share in by_then], color=colour, marker="o" if len(epochs) < 2 else None)
    axes.set(xlabel="epoch", ylabel="learned by then, %")
    axes.set_ylim(bottom=0)
    _whole(axes)
    figures.exit_legend(figure, xray.num_exits)
    return figure


def _coefficients(report: XrayReport) -> "Figure":
    """Median and quartiles over the watched images of what the objective gives each."""
    xray = report.record
    named = (("damping coefficient γ", xray.gamma_EKW), ("weight w", xray.weight_EKW))
    present = [(title, values_EKW.float()) for title, values_EKW in named if values_EKW is not None]
    figure, all_axes = figures.panels(len(present), 2.6, columns=2)
    epochs = xray.epochs_E.tolist()
    for (title, values_EKW), axes in zip(present, all_axes, strict=True):
        quartiles_3EK = values_EKW.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=-1)
        for k, colour in enumerate(figures.depth_colours(xray.num_exits)):
            low, middle, high = quartiles_3EK[:, :, k].tolist()
            axes.plot(epochs, middle, color=colour, marker="o" if len(epochs) < 2 else None)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
        axes.set(title=title, xlabel="epoch")
        _whole(axes)
    figures.exit_legend(figure, xray.num_exits)
    return figure


def _error_detection(error_detection: Sequence[ErrorDetection]) -> "Figure":
    """Accuracy in each tenth of the test images, by the damping value."""
    figure, (axes,) = figures.panels(1, 3.2)
    for exit, colour in zip(error_detection, figures.depth_colours(len(error_detection)), strict=True):
        axes.plot(exit.values, exit.top1, color=colour, marker="o", markersize=4)
    axes.set(xscale="log", xlabel="F[N+1], median of a tenth of the test images", ylabel="top-1 in that tenth, %")
    figures.exit_legend(figure, len(error_detection))
    return figure


def _whole(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
