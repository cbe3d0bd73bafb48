"""The page of a verdict: what follows, accuracy against time, gains at equal times, and how it was measured."""

from typing import TYPE_CHECKING

from offramp.results.verdict.conclusion import against
from offramp.results.verdict.values import ContenderFigures, Verdict
from offramp.show import figures
from offramp.show.bench.plots import EXITS, STAR
from offramp.show.page import inline_svg, page
from offramp.show.verdict.table import PERCENT, SAID, label, milliseconds, remarks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {"yes": "Yes", "no": "No", "open": "Not resolved"}


def verdict_page(verdict: Verdict, run: str) -> str:
    """One file, the same for the same verdict on the run of this name."""
    with figures.style():
        drawn = {"accuracy-time": _accuracy(verdict), "gains": _gains(verdict)}
        plots = {name: inline_svg(figure, name) for name, figure in drawn.items()}
    word, _, reason = verdict.headline.partition(": ")
    return page(
        "verdict.html.j2",
        title=f"Is early exit worth it? {WORDS[verdict.answer]}",
        verdict=verdict,
        run=run,
        word=word,
        reason=f"{reason[0].upper()}{reason[1:]}",
        plots=plots,
        contenders=[each for kind in ("engine", "cut", "alone") for each in verdict.contenders if each.kind == kind],
        comparisons=[(each, SAID[each.answer]) for each in verdict.comparisons],
        confidence=PERCENT,
        against=against,
        label=label,
        milliseconds=milliseconds,
        remarks=list(remarks(verdict)),
    )


def _accuracy(verdict: Verdict) -> "Figure":
    figure, (axes,) = figures.panels(1, 3.9)
    kinds = {kind: [c for c in verdict.contenders if c.kind == kind] for kind in ("cut", "alone", "engine")}
    axes.plot(*_points(kinds["cut"]), **EXITS, label="the network cut at one exit")
    if kinds["alone"]:
        axes.plot(
            *_points(kinds["alone"]),
            "s-",
            markersize=5.5,
            lw=1,
            color=figures.GROUPS[2],
            label="one exit, trained alone",
        )
    best = [contender for contender in verdict.contenders if contender.name in verdict.frontier]
    best.sort(key=lambda contender: contender.ms)
    axes.plot(
        *_points(best),
        color=figures.INK,
        lw=0.9,
        linestyle=(0, (4, 3)),
        label="best smaller networks, by held-out images",
    )
    axes.plot(*_points(kinds["engine"]), **STAR, label="early exits")
    for contender in (*kinds["cut"], *kinds["alone"]):
        below = contender.kind == "cut"
        axes.annotate(
            f"{contender.exit}",
            (contender.ms, contender.top1),
            xytext=(6, -9) if below else (-9, 6),
            textcoords="offset points",
            color=figures.MUTED if below else figures.GROUPS[2],
            fontsize=8.5,
        )
    figure.legend(loc="outside upper left", ncols=2)
    _over_time(axes, verdict, "top-1 accuracy, %")
    return figure


def _gains(verdict: Verdict) -> "Figure":
    figure, (axes,) = figures.panels(1, 3.0)
    asking = [comparison for comparison in verdict.comparisons if not comparison.straight]
    axes.axhline(0, color=figures.INK, lw=0.9)
    if verdict.least_gain:
        axes.axhline(verdict.least_gain, color=figures.MUTED, lw=0.9, linestyle=(0, (4, 3)))
    if asking:
        reach = [
            [comparison.gain - comparison.low for comparison in asking],
            [comparison.high - comparison.gain for comparison in asking],
        ]
        axes.errorbar(
            [comparison.ms for comparison in asking],
            [comparison.gain for comparison in asking],
            [[max(0.0, length) for length in side] for side in reach],
            fmt="o",
            markersize=5,
            capsize=3,
            color=figures.GROUPS[1],
        )
    _over_time(axes, verdict, "gain of early exits, points")
    return figure


def _over_time(axes: "Axes", verdict: Verdict, ylabel: str) -> None:
    axes.set(xlabel="milliseconds per image", ylabel=ylabel)
    axes.set_xlim(0, 1.08 * max(contender.ms for contender in verdict.contenders))
    axes.margins(y=0.12)


def _points(contenders: "list[ContenderFigures]") -> tuple[list[float], list[float]]:
    return [contender.ms for contender in contenders], [contender.top1 for contender in contenders]
