"""A verdict for the terminal: the conclusion, then early exits beside the smaller networks of their times."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from offramp.results.verdict.conclusion import against
from offramp.results.verdict.values import CONFIDENCE, ContenderFigures, Verdict
from offramp.show.terminal import ruled_table
from offramp.terminal import short

PERCENT = f"{100 * CONFIDENCE:.0f} %"
SAID = {"yes": "gain", "no": "no gain", "open": "not resolved"}


def verdict_table(verdict: Verdict) -> RenderableType:
    """All that was measured, and what follows."""
    table = ruled_table("", "top-1 %", "ms", "operations", left=1)
    for kind in ("cut", "alone", "engine"):
        for contender in (contender for contender in verdict.contenders if contender.kind == kind):
            top1, operations = f"{contender.top1:.2f}", short(contender.operations)
            table.add_row(label(contender), top1, milliseconds(contender), operations)
        table.add_section()
    gains = ruled_table("ms", "early exits %", "best smaller %", f"gain ({PERCENT})")
    for name in ("", "best smaller network of that time"):
        gains.add_column(name)
    for comparison in verdict.comparisons:
        gains.add_row(
            f"{comparison.ms:.3g}",
            f"{comparison.top1:.2f}",
            f"{comparison.rival_top1:.2f}",
            "straight on"
            if comparison.straight
            else f"{comparison.gain:+.2f} ({comparison.low:.2f} to {comparison.high:.2f})",
            SAID[comparison.answer],
            against(comparison),
        )
    lines = [verdict.headline, *verdict.details, "", *remarks(verdict)]
    return Group(table, gains, *map(Text, lines))


def label(contender: ContenderFigures) -> str:
    """Its name, with what is to be known of it."""
    more = [f"mean of {contender.seeds} seeds"] if contender.seeds > 1 else []
    more += ["runs straight on"] if contender.straight else []
    return f"{contender.name} ({', '.join(more)})" if more else contender.name


def milliseconds(contender: ContenderFigures) -> str:
    """`1.32 (1.30 to 1.35)`."""
    return f"{contender.ms:.3g} ({contender.ms_low:.3g} to {contender.ms_high:.3g})"


def remarks(verdict: Verdict) -> Iterator[str]:
    """What the figures are worth, in sentences."""
    where, data, batch = verdict.conditions, verdict.data, verdict.batch_size
    yield (
        f"{data.images:,} images of {data.test}; {'one image' if batch == 1 else f'{batch} images'} at a time, "
        f"{data.timed:,} timed in a round; {where}, torch {where.torch}, load before it {where.load_average}."
    )
    yield (
        f"The {PERCENT} intervals of gains hold together. They cover which images were tested and the rounds of "
        "timing, each on other images; they do not cover other trainings: the run is one."
    )
    yield (
        f"Thresholds were found, and the best smaller networks chosen, on {data.search_images:,} held-out images; a "
        "gain has to hold against those best on the test images as well. Times are medians of rounds (90 % interval)."
    )
    yield from verdict.trained
    yield from verdict.left_out
    if verdict.missing:
        exits = ", ".join(map(str, verdict.missing))
        yield f"Missing: the smaller networks up to exit {exits}, trained alone. Without --no-train they are trained."
    if verdict.wrong:
        yield f"{verdict.wrong} timed answers differ from those of the plain networks by more than rounding."
