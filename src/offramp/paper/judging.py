"""Claims and printed numbers, judged by what runs gave."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from offramp.paper import statistics
from offramp.paper.claims import Claim
from offramp.paper.experiments import Experiment, Row
from offramp.paper.predicates import Greater, Predicate
from offramp.paper.published import PublishedRow, published_row, published_table
from offramp.paper.results import (
    Figures,
    Key,
    Results,
    fewest_images,
    mean_top1,
    printed,
)
from offramp.paper.statistics import Estimate, Ruling

Name = TypeVar("Name")

CLOSE = 0.5
"""Points of mean accuracy over exits within which a published number is reproduced.

More than the paper's own repeats of one configuration lie apart (up to 0.27, Tables 5 and 8 against Table 1): less
would refuse the paper itself. Less than half of what dynamic training gains in Table 1 (1.15): what agrees cannot hide
that gain, nor feign it. Smaller gains are for the claims, which go by differences between our own runs.
"""


@dataclass(frozen=True)
class ClaimPart:
    """What the runs say of one statement.

    Attributes:
        says: The number that it is about, in words.
        found: That number and its interval; None where there is none.
        published: What the paper's own numbers give; None where it printed none, or where ours are of other data.
        note: Of which budgets the number is, or why there is none.
    """

    says: str
    found: Estimate | None
    published: float | None
    digits: int = 2
    verdict: Ruling = Ruling.NOT_RUN
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say of it; `rows` are those whose runs it is about."""

    claim: Claim
    verdict: Ruling
    parts: tuple[ClaimPart, ...] = ()
    rows: tuple[Key, ...] = ()


def judge(claims: Iterable[Claim], results: Results, *, papers: bool) -> list[Judged]:
    """Every claim of which anything was run, judged. `papers`: whether the data are the paper's."""
    judged = []
    for claim in claims:
        findings = [part.judge(results) for part in claim.parts]
        if all(finding.verdict is Ruling.NOT_RUN for finding in findings):
            continue
        verdict = statistics.all_of([finding.verdict for finding in findings])
        if claim.other_data and not papers:
            verdict = Ruling.NOT_COMPARABLE
        parts = (
            ClaimPart(
                part.says(),
                finding.found,
                _mean(part, printed()) if papers else None,
                part.digits,
                finding.verdict,
                finding.note,
            )
            for part, finding in zip(claim.parts, findings, strict=True)
        )
        rows = dict.fromkeys((q.experiment, q.row) for part in claim.parts for q in part.asked())
        judged.append(Judged(claim, verdict, tuple(parts), tuple(rows)))
    return judged


def corrected(contrasts: Mapping[Name, Greater], results: Results) -> dict[Name, float]:
    """By contrast of two seeds or more: the p of Student's test that it is 0, corrected for all of them (Holm)."""
    values = {name: list(contrast.contrasts(results).values()) for name, contrast in contrasts.items()}
    p_values = {
        name: statistics.p_value(of, contrasts[name].images(results)) for name, of in values.items() if len(of) > 1
    }
    return dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))


def judge_numbers(experiments: Sequence[Experiment], results: Results) -> list[Judged]:
    """The mean over exits of every row that the paper has: is it what the paper printed, within `CLOSE`?

    On other data than the paper's, or with another recipe, nothing can be said; then there is one line for each table.
    """
    judged = []
    for experiment in experiments:
        known = [
            (row, theirs, list(ours.values()))
            for row in experiment.rows
            if (theirs := published_row(experiment, row)) and (ours := results.of(experiment.name, row.label))
        ]
        if known and not experiment.scale.comparable:
            text = f"{experiment.name}: the printed means over exits of {len(known)} rows"
            verdict = Ruling.OTHER_RECIPE if experiment.scale.papers else Ruling.NOT_COMPARABLE
            judged.append(Judged(Claim(text, "table", _table(experiment), ()), verdict))
            continue
        judged += [_judge_number(experiment, row, theirs, ours) for row, theirs, ours in known]
    return judged


def _judge_number(experiment: Experiment, row: Row, theirs: PublishedRow, ours: Sequence[Figures]) -> Judged:
    mean, table = theirs.mean_top1, published_table(experiment.name)
    over = "" if len(theirs.top1) == 1 else " on average over exits"
    text = f"{experiment.name}, {row.label}: {mean:.{table.digits}f} %{over}"
    if theirs.copied:
        return Judged(Claim(f"{text}, copied from its authors", "table", _table(experiment), ()), Ruling.OTHER_RECIPE)
    difference = statistics.against_published(
        [mean_top1(figures) for figures in ours],
        mean,
        table.runs,
        deviation=theirs.deviations[-1],
        confidence=statistics.EQUIVALENCE,
        images=fewest_images(ours),
    )
    verdict = statistics.within(difference, CLOSE)
    part = ClaimPart(f"ours less published, less than {CLOSE} apart wanted", difference, None, verdict=verdict)
    return Judged(Claim(text, "table", _table(experiment), ()), verdict, (part,), ((experiment.name, row.label),))


def _table(experiment: Experiment) -> str:
    return f"Table {experiment.name.removeprefix('table')}"


def _mean(part: Predicate, results: Results) -> float | None:
    values = part.contrasts(results)
    return fmean(values.values()) if values else None
