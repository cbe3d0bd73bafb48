"""A study as tables of text with links: what the page and the Markdown file both show."""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean

from offramp.paper import answer, early_exits, pilot, statistics
from offramp.paper.cells import NOTHING, Cell, Table, anchor, exit_names, linked, number, spread
from offramp.paper.experiments import Experiment, Row
from offramp.paper.judging import ClaimPart, Judged
from offramp.paper.predicates import EVERY, Exits, Greater, Q, Summed
from offramp.paper.published import published_table
from offramp.paper.published_tables import cost_tables, published_tables
from offramp.paper.results import (
    BUDGETS,
    Clock,
    Figures,
    Key,
    Results,
    What,
    mean_top1,
)

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


def tables(experiment: Experiment, results: Results) -> list[Table]:
    """The tables of an experiment: ours of the rows that were run, and the paper's beside it."""
    rows = tuple(row for row in experiment.rows if results.of(experiment.name, row.label))
    unlike = experiment.scale.unlike
    ours = _ours(experiment, rows, results) if rows else []
    if unlike:  # in the table itself: it may be copied off the page
        ours = [dataclasses.replace(table, note=f"Measured {unlike}. {table.note}") for table in ours]
    return ours + published_tables(experiment, results) + cost_tables(experiment)


def not_run(experiment: Experiment, results: Results) -> list[str]:
    """The rows that no run exists of."""
    return [row.label for row in experiment.rows if not results.of(experiment.name, row.label)]


def _ours(experiment: Experiment, rows: Sequence[Row], results: Results) -> list[Table]:
    if experiment.shows == "pilot":  # nothing on test, on which the study reports
        by_exit = _by_exit(experiment, rows, results, "search", "Top-1 on `search`, last epoch", 2, mean=True)
        return [_chosen(experiment, results), by_exit]
    tables = [_accuracy(experiment, rows, results)]
    if early_exits.shown(experiment):
        tables.append(_early_exits(experiment, rows, results))
        tables.append(_by_exit(experiment, rows, results, "ece", "Calibration error (ECE) on test", 4, mean=True))
        recorded = [row for row in rows if _recorded(experiment, row, results, "leaving")]
        title = "Share of images answered at each exit under the certificate"
        tables += [_by_exit(experiment, recorded, results, "leaving", title, 3)] if recorded else []
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
    if experiment.shows == "study":
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
    deltas = (f"Δ: sum over exits less {first.label}'s, paired",) if published_table(experiment.name).has_delta else ()
    groups = GROUPS if experiment.shows in ("groups", "study") and num_exits >= 5 else ()  # of fewer exits they overlap
    against = [f"against {first.label}, paired", *(f"{name}, paired" for name, _ in groups)]
    against += ["pairs"] if groups else []
    p_values = answer.p_values(experiment, results) if early_exits.shown(experiment) else {}
    against += ["p of the mean, Holm"] if p_values else []
    head = ("", *exit_names(num_exits), *means, *deltas, *against, "n", "training time")
    clocks = _clocks(experiment, results)
    rows = []
    for row in shown:
        figures = results.of(experiment.name, row.label)
        rows.append(
            (
                Cell(row.label, anchor(row)),
                *(spread(row, [f.top1[k] for f in figures.values()]) for k in range(num_exits)),
                *(() if single else (spread(row, [mean_top1(f) for f in figures.values()]),)),
                *(_delta(experiment, row, results) for _ in deltas),
                *(
                    [*_paired(experiment, row, groups, results), *_p(row, p_values)]
                    if row is not first
                    else [Cell("")] * len(against)
                ),
                Cell(str(len(figures)), anchor(row)),
                linked(row, _time(figures, results.of(experiment.name, first.label), say=len(clocks) > 1)),
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
    if p_values:
        note += (
            " The p of that mean, by Student's test, two-sided, is corrected for all rows of two seeds or more (Holm)."
        )
    if deltas:
        note += " Δ is over the sum of the exits, as in the paper; the difference beside it is over their mean."
    if any(row.best_epoch for row in shown):
        note += " Best epoch: selected on test, as the paper's row is; it flatters."
    return Table("Accuracy", head, tuple(rows), note)


def _early_exits(experiment: Experiment, shown: Sequence[Row], results: Results) -> Table:
    """What early exits are worth, beside their top-1: each figure, and its paired difference to the first row."""
    first, verdicts = experiment.rows[0], early_exits.verdicts(experiment, results)
    rows = []
    for row in shown:
        cells = []
        for figure in early_exits.FIGURES:
            values = early_exits.values(experiment, row, figure, results)
            cells.append(number(row, values, 2) if values else Cell("not measured", anchor(row)))
            against = early_exits.difference(experiment, row, figure, results)
            text = "" if row is first else NOTHING if against is None else against.text()
            cells.append(linked(row, text) if text else Cell(""))
        verdict = "" if row is first else early_exits.in_words(verdicts[row.label])
        rows.append((Cell(row.label, anchor(row)), *cells, Cell(verdict, anchor(row)) if verdict else Cell("")))
    titles = [name for figure in early_exits.FIGURES for name in (figure.title, f"against {first.label}, paired")]
    return Table("Early exits", ("", *titles, "so"), tuple(rows), early_exits.NOTE)


def _chosen(experiment: Experiment, results: Results) -> Table:
    """Of each method the candidate that is best on `search`, of those that were run, and by how much."""
    rows = []
    for family, candidates in pilot.CANDIDATES.items():
        asked = {each.label: Q(experiment.name, each.label, "search") for each in candidates}
        search = {label: list(q.by_seed(results).values()) for label, q in asked.items()}
        ranked = pilot.ranked({label: fmean(values) for label, values in search.items() if values})
        row = experiment.row(ranked[0]) if ranked else None
        if row is None:
            continue
        lead = Greater(asked[ranked[0]], asked[ranked[1]]).estimate(results) if len(ranked) > 1 else None
        next_best = "" if lead is None else f"{lead.text()} over {ranked[1]}"
        missing = len(candidates) - len(ranked)
        cells = Cell(row.label, anchor(row)), number(row, search[row.label], 2), Cell(next_best)
        rows.append((Cell(family), *cells, Cell(f"{missing} not run" if missing else "")))
    note = (
        "Means over exits, on `search`, in percent; leads are paired by seed, with Student's 95 % interval from two "
        "seeds on. A lead smaller than what runs of equal methods differ by is chance, for every method alike: "
        "the study's own seeds say what the choice is worth."
    )
    head = ("method", "chosen", "top-1 on `search`", "lead", "candidates")
    return Table("What the pilot chooses", head, tuple(rows), note)


def _p(row: Row, corrected: Mapping[str, float]) -> list[Cell]:
    return [linked(row, f"{corrected[row.label]:.3f}" if row.label in corrected else NOTHING)] if corrected else []


def _delta(experiment: Experiment, row: Row, results: Results) -> Cell:
    """What a row has over the first, summed over exits."""
    if row is experiment.rows[0]:
        return Cell("")
    difference = Summed(*(Q(experiment.name, each.label) for each in (row, experiment.rows[0]))).estimate(results)
    return linked(row, NOTHING if difference is None else difference.text())


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
        cells = [number(row, [curve[k] for curve in curves], digits) for k in range(num_exits + mean)]
        rows.append((Cell(row.label, anchor(row)), *cells))
    note = "Mean ± standard deviation over seeds."
    lacking = sum(f.values(what) is None for row in shown for f in results.of(experiment.name, row.label).values())
    if lacking:
        note += f" Not recorded of {lacking} run{'s' if lacking > 1 else ''}."
    return Table(title, ("", *exit_names(num_exits), *(("mean",) if mean else ())), tuple(rows), note)


def _budgeted(experiment: Experiment, shown: Sequence[Row], results: Results) -> Table:
    rows = []
    for row in shown:
        curves = [curve for f in results.of(experiment.name, row.label).values() if (curve := f.values("budgeted"))]
        cells = [spread(row, [curve[b] for curve in curves]) for b in range(len(BUDGETS))]
        rows.append((Cell(row.label, anchor(row)), *cells))
    head = ("", *(f"{budget:.0%}".replace("%", " %") for budget in BUDGETS))
    note = (
        "Top-1 in percent when so much of the whole network's operations is spent on average; thresholds found on half "
        f"of the held-out images, 39 points, the line between them. {NOTHING}: a run that cannot spend so little."
    )
    return Table("Accuracy under thresholds", head, tuple(rows), note)


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
    return [linked(row, text) for text in (*texts, *pairs)]


def _clocks(experiment: Experiment, results: Results) -> list[Clock]:
    """Under which conditions the times of an experiment were taken, each once."""
    figures = [f for row in experiment.rows for f in results.of(experiment.name, row.label).values()]
    return list(dict.fromkeys(f.clock for f in figures if f.clock is not None and f.seconds is not None))


def _time(runs: Mapping[int, Figures], first: Mapping[int, Figures], *, say: bool) -> str:
    """Mean over seeds, and how many times the first row's, seed by seed; a line for each way the times were taken.

    Where there are several ways, those beside other work, which say little, are one line: from the least to the most.
    """
    alike: dict[Clock | None, dict[int, Figures]] = {}
    for seed, figures in runs.items():
        if figures.seconds is not None:
            alike.setdefault(figures.clock, {})[seed] = figures
    disturbed = {clock: group for clock, group in alike.items() if clock is not None and not clock.alone}
    if not say or len(disturbed) < 2:
        disturbed = {}
    lines = [
        _mean_time(group, first) + (f"\n{clock}" if say else "")
        for clock, group in alike.items()
        if clock not in disturbed
    ]
    seconds = [f.seconds for group in disturbed.values() for f in group.values() if f.seconds is not None]
    if seconds:
        how = f"taken in {len(disturbed)} ways, other work beside or not recorded"
        lines.append(f"{_duration(min(seconds))} to {_duration(max(seconds))}\n{how}")
    return "\n".join(lines) or NOTHING


def _mean_time(figures: Mapping[int, Figures], first: Mapping[int, Figures]) -> str:
    mean = fmean(f.seconds for f in figures.values() if f.seconds is not None)
    time = _duration(mean)
    pairs = [(f, first[seed]) for seed, f in figures.items() if seed in first and f.timed_like(first[seed])]
    ratios = [ours.seconds / theirs.seconds for ours, theirs in pairs if ours.seconds and theirs.seconds]
    return f"{time} (×{fmean(ratios):.2f})" if ratios else time


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _num_exits(experiment: Experiment, results: Results) -> int:
    """K: of what was run, else what the setting says."""
    for row in experiment.rows:
        for figures in results.of(experiment.name, row.label).values():
            return len(figures.top1)
    single = experiment.shows in ("last-exit", "threshold")
    return 1 if single else experiment.rows[0].setting.exits
