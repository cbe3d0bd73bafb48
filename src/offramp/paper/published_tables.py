"""The paper's own numbers as tables, and ours less them."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from offramp.paper import statistics
from offramp.paper.cells import NOTHING, Cell, Table, anchor, exit_names
from offramp.paper.estimate import counted
from offramp.paper.experiments import Experiment, Row
from offramp.paper.published import PublishedRow, published_row, published_table
from offramp.paper.results import Figures, Results, What, fewest_images


def published_tables(experiment: Experiment, results: Results) -> list[Table]:
    """The paper's numbers, labelled so, and our difference where data and recipe are the paper's."""
    known = [(row, theirs) for row in experiment.rows if (theirs := published_row(experiment, row)) is not None]
    if not known:
        return []
    table = published_table(experiment.name)
    count = "one run" if table.runs == 1 else f"{table.runs} runs"
    exits = range(max(len(theirs.top1) for _, theirs in known))
    head = ("", *exit_names(len(exits)), *(("mean",) if len(exits) > 1 else ()))
    scale = experiment.scale
    note = f"Printed in the paper, {count} on {table.data}."
    note += " Its ± is very probably half the range." if table.runs > 1 else ""
    if len(exits) > 1 and not any(theirs.mean is not None for _, theirs in known):
        note += " The means are not printed there; they are taken of its numbers."
    copied = [row.label for row, theirs in known if theirs.copied]
    if copied:
        note += f" {' and '.join(copied)}: copied there from their authors, who trained by another recipe."
    if not scale.comparable:
        other = f"Ours have {scale.factor} times the epochs" if scale.papers else "Other data, other networks"
        note += f" {other}: not comparable with anything of ours."
    deltas = (f"Δ: sum over exits less {known[0][0].label}'s",) if table.has_delta else ()
    rows = tuple((*_printed(row, theirs, table.digits), *(_delta(theirs) for _ in deltas)) for row, theirs in known)
    printed = Table("Published", (*head, *deltas), rows, note)
    return [printed, *(_less_published(experiment, known, head, results) if scale.comparable else [])]


def cost_tables(experiment: Experiment) -> list[Table]:
    """Parameters and operations of the network's exits as the paper prints them, and by our count beside them."""
    theirs = published_table(experiment.name)
    if not experiment.scale.papers or theirs.operations is None:
        return []
    rows, count = [], counted(experiment.rows[0])
    for name, costs in (("parameters", theirs.parameters), ("operations", theirs.operations)):
        assert costs is not None
        ours = [getattr(exit, name) / costs.unit for exit in count.exits]
        power = len(f"{costs.unit:.0f}") - 1
        rows.append((Cell(f"{name}, 10^{power}, published"), *(Cell(f"{v:.2f}") for v in costs.exits)))
        rows.append((Cell("by our count"), *(Cell(f"{v:.2f}") for v in ours)))
    note = "Of the network without the damping neuron, with all heads on the way. " + theirs.slip
    return [Table("Cost of the exits", ("", *exit_names(len(count.exits))), tuple(rows), note.strip())]


def _less_published(
    experiment: Experiment, known: Sequence[tuple[Row, PublishedRow]], head: tuple[str, ...], results: Results
) -> list[Table]:
    """Our figures less the printed ones, of rows that the paper's authors trained themselves."""
    known = [(row, theirs) for row, theirs in known if not theirs.copied]
    runs = published_table(experiment.name).runs
    note = "With 95 % intervals, which take "
    if runs > 1:
        note += "the paper's ± of an exit for half the range of its runs, and that of the mean for a deviation, the "
        note += "larger of its two readings."
    else:
        note += "the paper's run to spread like ours."
    tables = []
    kinds: tuple[tuple[What, str], ...] = (
        ("top1", "Ours less published"),
        ("damping", "F[N+1] on test, ours less published"),
    )
    for what, title in kinds:
        if all(_numbers(theirs, what) for _, theirs in known):
            rows = tuple(
                _gaps(row, theirs, figures, runs, what)
                for row, theirs in known
                if (figures := results.of(experiment.name, row.label))
            )
            tables += [Table(title, head, rows, note)] if rows else []
    return tables


def _printed(row: Row, theirs: PublishedRow, digits: int) -> tuple[Cell, ...]:
    """A row as the paper prints it, with its digits: three where a number is the mean of five runs, and of F[N+1]."""
    spread, damping = theirs.spread, theirs.damping
    texts = [
        f"{value:.{digits}f}"
        + (f" ±{spread[k]:.{digits}f}" if spread else "")
        + (f" ({damping[k]:.3f})" if damping else "")
        for k, value in enumerate(theirs.top1)
    ]
    if len(texts) > 1:
        texts.append(f"{theirs.mean_top1:.{digits}f}" + (f" ±{theirs.mean_spread:.{digits}f}" if spread else ""))
    by = "copied by the paper" if theirs.copied else "published"
    return Cell(f"{row.label}, {by}"), *map(Cell, texts)


def _delta(theirs: PublishedRow) -> Cell:
    return Cell(NOTHING if theirs.delta is None else f"{theirs.delta:+.2f}")


def _numbers(theirs: PublishedRow, what: What) -> tuple[float, ...]:
    return theirs.top1 if what == "top1" else theirs.damping or ()


def _gaps(row: Row, theirs: PublishedRow, figures: Mapping[int, Figures], runs: int, what: What) -> tuple[Cell, ...]:
    """What our figures have over the printed ones, exit by exit, and their mean over exits."""
    printed, digits = _with_mean(_numbers(theirs, what)), 2 if what == "top1" else 4
    known = theirs.deviations if what == "top1" else [None] * len(printed)
    images = fewest_images(figures.values()) if what == "top1" else None
    ours = [_with_mean(values) for f in figures.values() if (values := f.values(what)) is not None]
    cells = [Cell(NOTHING)] * len(printed)
    if ours:
        gaps = (
            statistics.against_published([of[k] for of in ours], value, runs, deviation=known[k], images=images)
            for k, value in enumerate(printed)
        )
        cells = [Cell(gap.text(digits), anchor(row)) for gap in gaps]
    return Cell(row.label, anchor(row)), *cells


def _with_mean(values: Sequence[float]) -> list[float]:
    """One number per exit, and their mean where there are several."""
    return [*values, *([fmean(values)] if len(values) > 1 else [])]
