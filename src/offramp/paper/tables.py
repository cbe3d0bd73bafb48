"""A study as tables of text with links: what the page and the Markdown file both show."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from offramp.evaluation.spread import Spread
from offramp.paper import statistics
from offramp.paper.estimate import counted
from offramp.paper.experiments import Experiment, Row
from offramp.paper.identity import run_hash
from offramp.paper.judging import ClaimPart, Judged
from offramp.paper.predicates import EVERY, Exits, Greater, Q, Summed
from offramp.paper.results import (
    BUDGETS,
    Clock,
    Figures,
    Key,
    Results,
    What,
    deviations,
    fewest_images,
    has_delta,
    mean_top1,
    printed_digits,
    printed_mean,
    published,
    published_row,
)
from offramp.show.side_by_side import spread_text

NOTHING = "–"
LAST_EPOCH: tuple[tuple[What, str, int], ...] = (
    ("weight", "Weights of the exits", 4),
    ("gamma", "Damping coefficients γ", 6),
)
GRADIENTS: tuple[tuple[What, str], ...] = (
    ("learned", "Share of the push that comes from learned images (F[y] of 95 % and above)"),
    ("damped", "Share of images whose gradient is damped"),
    ("reversed", "Share of images whose gradient is reversed"),
)
OF_OUR_RUNS = (statistics.Ruling.AGREES, statistics.Ruling.DISAGREES, statistics.Ruling.NOT_RESOLVED)
GROUPS = (("first three exits", (None, 3)), ("last two exits", (-2, None)))  # where methods differ most, and least


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


def claims_table(
    title: str, judged: Sequence[Judged], anchors: Mapping[Key, str], *, unlike: str, confidence: float, note: str
) -> Table:
    """Claims with their verdicts.

    Args:
        anchors: Where on the page the runs of a row are listed, of those that were run.
        unlike: Said beside all that other data or another recipe gave.
        confidence: Of the intervals.
    """
    rows = []
    for judgement in judged:
        verdict = (
            f"{judgement.verdict}, {unlike}" if unlike and judgement.verdict in OF_OUR_RUNS else str(judgement.verdict)
        )
        source = f"{judgement.claim.source}: {judgement.claim.where}"
        parts = "\n".join(_part(part, unlike) for part in judgement.parts)
        behind = tuple((f"{key[0]}: {key[1]}", anchors[key]) for key in judgement.rows if key in anchors)
        rows.append((*map(Cell, (judgement.claim.text, source, verdict)), Cell(parts, rows=behind if parts else ())))
    head = ("claim", "source", "verdict", f"found, with {100 * confidence:.0f} % intervals")
    return Table(title, head, tuple(rows), note)


def _part(part: ClaimPart, unlike: str) -> str:
    """What was found of a part of a claim, and the paper's own number beside it where the data are the paper's."""
    measured = f", {unlike}" if unlike else ""
    result = (
        f"{part.verdict}" if part.found is None else f"{part.found.text(part.digits)}, n = {part.found.n}{measured}"
    )
    own = "" if part.published is None else f" (the paper's own numbers: {part.published:+.{part.digits}f})"
    note = f" ({part.note})" if part.note else ""
    return f"{part.says}{note}: {result}{own}"


def anchor(row: Row) -> str:
    """Where the page lists the runs of a row: rows that share their runs share it."""
    return f"runs-{run_hash(row.run)}"


def tables(experiment: Experiment, results: Results) -> list[Table]:
    """The tables of an experiment: ours of the rows that were run, and the paper's beside it."""
    rows = tuple(row for row in experiment.rows if results.of(experiment.name, row.label))
    unlike = experiment.scale.unlike
    ours = _ours(experiment, rows, results) if rows else []
    if unlike:  # in the table itself: it may be copied off the page
        ours = [dataclasses.replace(table, note=f"Measured {unlike}. {table.note}") for table in ours]
    return ours + _published(experiment, results) + _costs(experiment)


def not_run(experiment: Experiment, results: Results) -> list[str]:
    """The rows that no run exists of."""
    return [row.label for row in experiment.rows if not results.of(experiment.name, row.label)]


def _ours(experiment: Experiment, rows: Sequence[Row], results: Results) -> list[Table]:
    tables = [_accuracy(experiment, rows, results)]
    if experiment.shows == "damping":
        tables += [
            _by_exit(experiment, rows, results, "damping", "F[N+1] on test images", 4),
            _by_exit(experiment, rows, results, "damping-train", "F[N+1] on training images, with test transforms", 4),
        ]
        for what, title, digits in LAST_EPOCH:
            recorded = [row for row in rows if _recorded(experiment, row, results, what)]
            if recorded:
                tables.append(
                    _by_exit(experiment, recorded, results, what, f"{title}, mean over the last epoch", digits)
                )
    if experiment.shows == "threshold":
        tables.append(_by_exit(experiment, rows, results, "train-nll", "Loss converged to: nats on training images", 4))
    if experiment.shows in ("budgeted", "study"):
        tables.append(_budgeted(experiment, rows, results))
    if experiment.shows == "pilot":
        tables.append(_by_exit(experiment, rows, results, "search", "Top-1 on `search`, last epoch", 2, mean=True))
    if experiment.shows == "study":
        tables.append(_by_exit(experiment, rows, results, "ece", "Calibration error (ECE) on test", 4, mean=True))
        tables += [
            _by_exit(experiment, recorded, results, what, f"{title}, over all epochs", 3)
            for what, title in GRADIENTS
            if (recorded := [row for row in rows if _recorded(experiment, row, results, what)])
        ]
    return tables


def _recorded(experiment: Experiment, row: Row, results: Results, what: What) -> bool:
    """Whether any manifest of the row holds this: older ones do not."""
    return any(f.values(what) is not None for f in results.of(experiment.name, row.label).values())


def _accuracy(experiment: Experiment, shown: Sequence[Row], results: Results) -> Table:
    """Accuracy of every exit, their mean, its paired difference to the first row, time."""
    first = experiment.rows[0]
    num_exits = _num_exits(experiment, results)
    single = num_exits == 1
    means = () if single else ("mean",)
    deltas = (f"Δ: sum over exits less {first.label}'s, paired",) if has_delta(experiment.name) else ()
    groups = GROUPS if experiment.shows in ("groups", "study") and num_exits >= 5 else ()  # of fewer exits they overlap
    against = [f"against {first.label}, paired", *(f"{name}, paired" for name, _ in groups)]
    against += ["pairs"] if groups else []
    corrected = _corrected(experiment, shown, results) if experiment.shows == "study" else {}
    against += ["p of the mean, Holm"] if corrected else []
    head = ("", *_exit_names(num_exits), *means, *deltas, *against, "n", "training time")
    clocks = _clocks(experiment, results)
    rows = []
    for row in shown:
        figures = results.of(experiment.name, row.label)
        rows.append(
            (
                Cell(row.label, anchor(row)),
                *(_spread(row, [f.top1[k] for f in figures.values()]) for k in range(num_exits)),
                *(() if single else (_spread(row, [mean_top1(f) for f in figures.values()]),)),
                *(_delta(experiment, row, results) for _ in deltas),
                *(
                    [*_paired(experiment, row, groups, results), *_p(row, corrected)]
                    if row is not first
                    else [Cell("")] * len(against)
                ),
                Cell(str(len(figures)), anchor(row)),
                _linked(row, _time(figures, results.of(experiment.name, first.label), say=len(clocks) > 1)),
            )
        )
    note = "Top-1 in percent on test: mean ± standard deviation (half-range) over n seeds. Times are of training alone"
    if len(clocks) > 1:
        note += "; only those that were taken alike, with no other work beside, are set against each other."
    else:
        note += f" ({clocks[0]}, as the manifests say)." if clocks else "."
    if groups:
        note += (
            " Paired: the mean over exits less the first row's, seed by seed, with Student's 95 % interval from two "
            "pairs on. Each interval stands for itself; of twenty, one misses by chance."
        )
    if corrected:
        note += " The p of Student's test of that mean, two-sided, is corrected for the number of rows (Holm)."
    if deltas:
        note += " Δ is over the sum of the exits, as in the paper; the difference beside it is over their mean."
    if any(row.best_epoch for row in shown):
        note += " Best epoch: selected on test, as the paper's row is; it flatters."
    return Table("Accuracy", head, tuple(rows), note)


def _corrected(experiment: Experiment, shown: Sequence[Row], results: Results) -> dict[str, float]:
    """Of each row against the first the p-value of the mean over exits, corrected for how many rows there are."""
    first = Q(experiment.name, experiment.rows[0].label)
    contrasts = {row.label: Greater(Q(experiment.name, row.label), first) for row in shown if row.label != first.row}
    values = {label: list(greater.contrasts(results).values()) for label, greater in contrasts.items()}
    p_values = {label: statistics.p_value(of, contrasts[label].images(results)) for label, of in values.items() if of}
    return dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))


def _p(row: Row, corrected: Mapping[str, float]) -> list[Cell]:
    return [_linked(row, f"{corrected[row.label]:.3f}" if row.label in corrected else NOTHING)] if corrected else []


def _delta(experiment: Experiment, row: Row, results: Results) -> Cell:
    """What a row has over the first, summed over exits."""
    if row is experiment.rows[0]:
        return Cell("")
    difference = Summed(*(Q(experiment.name, each.label) for each in (row, experiment.rows[0]))).estimate(results)
    return _linked(row, NOTHING if difference is None else difference.text())


def _linked(row: Row, text: str) -> Cell:
    """A number that leads to the row's runs, where there is one."""
    return Cell(text) if text == NOTHING else Cell(text, anchor(row))


def _by_exit(
    experiment: Experiment,
    shown: Sequence[Row],
    results: Results,
    what: What,
    title: str,
    digits: int,
    *,
    mean: bool = False,
) -> Table:
    num_exits = _num_exits(experiment, results)
    rows = []
    for row in shown:
        values = [f.values(what) for f in results.of(experiment.name, row.label).values()]
        curves = [curve for curve in values if curve is not None]
        if mean:
            curves = [(*curve, fmean(curve)) for curve in curves]
        cells = [_number(row, [curve[k] for curve in curves], digits) for k in range(num_exits + mean)]
        rows.append((Cell(row.label, anchor(row)), *cells))
    note = "Mean ± standard deviation over seeds."
    lacking = sum(f.values(what) is None for row in shown for f in results.of(experiment.name, row.label).values())
    if lacking:
        note += f" Not recorded of {lacking} run{'s' if lacking > 1 else ''}."
    return Table(title, ("", *_exit_names(num_exits), *(("mean",) if mean else ())), tuple(rows), note)


def _budgeted(experiment: Experiment, shown: Sequence[Row], results: Results) -> Table:
    rows = []
    for row in shown:
        curves = [f.budgeted for f in results.of(experiment.name, row.label).values() if f.budgeted is not None]
        cells = [_spread(row, [curve[b] for curve in curves]) for b in range(len(BUDGETS))]
        rows.append((Cell(row.label, anchor(row)), *cells))
    head = ("", *(f"{budget:.0%}".replace("%", " %") for budget in BUDGETS))
    note = (
        "Top-1 in percent when so much of the whole network's operations is spent on average; thresholds found on half "
        f"of the held-out images, 39 points, the line between them. {NOTHING}: a run that cannot spend so little."
    )
    return Table("Accuracy under thresholds", head, tuple(rows), note)


def _published(experiment: Experiment, results: Results) -> list[Table]:
    """The paper's numbers, labelled so, and our difference where data and recipe are the paper's."""
    known = [(row, theirs) for row in experiment.rows if (theirs := published_row(experiment, row)) is not None]
    if not known:
        return []
    table = published()[experiment.name]
    count = "one run" if table["runs"] == 1 else f"{table['runs']} runs"
    exits = range(max(len(theirs["top1"]) for _, theirs in known))
    head = ("", *_exit_names(len(exits)), *(("mean",) if len(exits) > 1 else ()))
    scale = experiment.scale
    note = f"Printed in the paper, {count} on {table['data']}."
    note += " Its ± is very probably half the range." if table["runs"] > 1 else ""
    if len(exits) > 1 and not any("mean" in theirs for _, theirs in known):
        note += " The means are not printed there; they are taken of its numbers."
    copied = [row.label for row, theirs in known if theirs.get("copied")]
    if copied:
        note += f" {' and '.join(copied)}: copied there from their authors, who trained by another recipe."
    if not scale.comparable:
        other = f"Ours have {scale.factor} times the epochs" if scale.papers else "Other data, other networks"
        note += f" {other}: not comparable with anything of ours."
    deltas = (f"Δ: sum over exits less {known[0][0].label}'s",) if has_delta(experiment.name) else ()
    digits = printed_digits(experiment.name)
    rows = tuple((*_printed(row, theirs, digits), *(_printed_delta(theirs) for _ in deltas)) for row, theirs in known)
    printed = Table("Published", (*head, *deltas), rows, note)
    return [printed, *(_less_published(experiment, known, head, results) if scale.comparable else [])]


def _costs(experiment: Experiment) -> list[Table]:
    """Parameters and operations of the network's exits as the paper prints them, and by our count beside them."""
    theirs, scale = published().get(experiment.name, {}), experiment.scale
    if not scale.papers or "operations" not in theirs:
        return []
    rows, count = [], counted(experiment.rows[0])
    for name in ("parameters", "operations"):
        unit, values = theirs[name]["unit"], theirs[name]["exits"]
        ours = [getattr(exit, name) / unit for exit in count.exits]
        rows.append((Cell(f"{name}, 10^{len(f'{unit:.0f}') - 1}, published"), *(Cell(f"{v:.2f}") for v in values)))
        rows.append((Cell("by our count"), *(Cell(f"{v:.2f}") for v in ours)))
    note = "Of the network without the damping neuron, with all heads on the way. " + theirs.get("slip", "")
    return [Table("Cost of the exits", ("", *_exit_names(len(count.exits))), tuple(rows), note.strip())]


def _less_published(
    experiment: Experiment, known: Sequence[tuple[Row, Mapping[str, Any]]], head: tuple[str, ...], results: Results
) -> list[Table]:
    """Our figures less the printed ones, of rows that the paper's authors trained themselves."""
    known = [(row, theirs) for row, theirs in known if not theirs.get("copied")]
    runs = published()[experiment.name]["runs"]
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
        if all(what in theirs for _, theirs in known):
            rows = tuple(
                _gaps(row, theirs, figures, runs, what)
                for row, theirs in known
                if (figures := results.of(experiment.name, row.label))
            )
            tables += [Table(title, head, rows, note)] if rows else []
    return tables


def _printed(row: Row, theirs: Mapping[str, Any], digits: int) -> tuple[Cell, ...]:
    """A row as the paper prints it, with its digits: three where a number is the mean of five runs, and of F[N+1]."""
    spread, damping = theirs.get("spread"), theirs.get("damping")
    texts = [
        f"{value:.{digits}f}"
        + (f" ±{spread[k]:.{digits}f}" if spread else "")
        + (f" ({damping[k]:.3f})" if damping else "")
        for k, value in enumerate(theirs["top1"])
    ]
    if len(texts) > 1:
        texts.append(f"{printed_mean(theirs):.{digits}f}" + (f" ±{theirs['mean_spread']:.{digits}f}" if spread else ""))
    by = "copied by the paper" if theirs.get("copied") else "published"
    return Cell(f"{row.label}, {by}"), *map(Cell, texts)


def _printed_delta(theirs: Mapping[str, Any]) -> Cell:
    return Cell(f"{theirs['delta']:+.2f}" if "delta" in theirs else NOTHING)


def _gaps(
    row: Row, theirs: Mapping[str, Any], figures: Mapping[int, Figures], runs: int, what: What
) -> tuple[Cell, ...]:
    """What our figures have over the printed ones, exit by exit, and their mean over exits."""
    printed, digits = _with_mean(theirs[what]), 2 if what == "top1" else 4
    spreads = deviations(theirs) if what == "top1" else None
    known = [None] * len(printed) if spreads is None else [*spreads[0], spreads[1]]
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


def _spread(row: Row, values: Sequence[float]) -> Cell:
    if not values or any(map(math.isnan, values)):
        return Cell(NOTHING)
    return Cell(spread_text(Spread.of(values)), anchor(row))


def _number(row: Row, values: Sequence[float], digits: int) -> Cell:
    if not values or any(map(math.isnan, values)):
        return Cell(NOTHING)
    spread = Spread.of(values)
    deviation = "" if spread.std is None else f" ±{spread.std:.{digits}f}"
    return Cell(f"{spread.mean:.{digits}f}{deviation}", anchor(row))


def _paired(experiment: Experiment, row: Row, groups: Sequence[tuple[str, Exits]], results: Results) -> list[Cell]:
    """What a row has over the first, over all exits and over groups of them; with groups, also of how many pairs."""
    differences = [
        Greater(*(Q(experiment.name, compared.label, exits=exits) for compared in (row, experiment.rows[0]))).estimate(
            results
        )
        for exits in (EVERY, *(exits for _, exits in groups))
    ]
    texts = [NOTHING if each is None else each.text() for each in differences]
    pairs = [str(differences[0].n if differences[0] else 0)] if groups else []
    return [_linked(row, text) for text in (*texts, *pairs)]


def _clocks(experiment: Experiment, results: Results) -> list[Clock]:
    """Under which conditions the times of an experiment were taken, each once."""
    figures = [f for row in experiment.rows for f in results.of(experiment.name, row.label).values()]
    return list(dict.fromkeys(f.clock for f in figures if f.clock is not None and f.seconds is not None))


def _time(runs: Mapping[int, Figures], first: Mapping[int, Figures], *, say: bool) -> str:
    """Mean over seeds, and how many times the first row's, seed by seed; a line for each way the times were taken."""
    alike: dict[Clock | None, dict[int, Figures]] = {}
    for seed, figures in runs.items():
        if figures.seconds is not None:
            alike.setdefault(figures.clock, {})[seed] = figures
    lines = [_mean_time(group, first) + (f"\n{clock}" if say else "") for clock, group in alike.items()]
    return "\n".join(lines) or NOTHING


def _mean_time(figures: Mapping[int, Figures], first: Mapping[int, Figures]) -> str:
    mean = fmean(f.seconds for f in figures.values() if f.seconds is not None)
    time = f"{mean:.1f} s" if mean < 100 else f"{mean / 60:.1f} min" if mean < 7200 else f"{mean / 3600:.1f} h"
    pairs = [(f, first[seed]) for seed, f in figures.items() if seed in first and f.timed_like(first[seed])]
    ratios = [ours.seconds / theirs.seconds for ours, theirs in pairs if ours.seconds and theirs.seconds]
    return f"{time} (×{fmean(ratios):.2f})" if ratios else time


def _num_exits(experiment: Experiment, results: Results) -> int:
    """K: of what was run, else what the setting says."""
    for row in experiment.rows:
        for figures in results.of(experiment.name, row.label).values():
            return len(figures.top1)
    single = experiment.shows in ("last-exit", "threshold")
    return 1 if single else experiment.rows[0].setting.exits


def _exit_names(num_exits: int) -> tuple[str, ...]:
    return ("last exit",) if num_exits == 1 else tuple(f"exit {k}" for k in range(1, num_exits + 1))
