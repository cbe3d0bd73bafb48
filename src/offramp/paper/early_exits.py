"""Does a method make early exits better, also where their top-1 does not move? What is saved, who leaves, calibration.

Differences to the first row of an experiment, seed by seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from offramp.paper import statistics
from offramp.paper.certified import DROP
from offramp.paper.experiments import Experiment, Row
from offramp.paper.judging import CLOSE, corrected
from offramp.paper.predicates import EVERY, Exits, Greater, Q
from offramp.paper.results import Results, What
from offramp.paper.statistics import Estimate, Ruling


@dataclass(frozen=True)
class Figure:
    """One of the figures that early exits are judged by.

    Attributes:
        better: 1 where more is better, -1 where less is.
    """

    what: What
    title: str
    exits: Exits = EVERY
    better: int = 1


FIGURES = (
    Figure("top1", "top-1 of early exits", (None, -1)),
    Figure("speed-up", "certified speed-up"),
    Figure("early", "leave early, %"),
    Figure("ece-early", "ECE of early exits, %", better=-1),
)
NOT_MEASURED, ONE_SEED = "not measured", "one seed"
QUESTION = "Does a method make early exits better, also where their top-1 does not move?"


def shown(experiment: Experiment) -> bool:
    """Whether an experiment is one that the question is asked of: the league and our own study."""
    return experiment.shows in ("groups", "study")


def values(experiment: Experiment, row: Row, figure: Figure, results: Results) -> list[float]:
    """A figure of a row, one a seed, of the runs that have it."""
    return list(Q(experiment.name, row.label, figure.what, figure.exits).by_seed(results).values())


def difference(experiment: Experiment, row: Row, figure: Figure, results: Results) -> Estimate | None:
    """What a row has over the first, with its 95 % interval; None where no seed has both."""
    return _against_first(experiment, row, figure).estimate(results)


def verdicts(experiment: Experiment, results: Results) -> dict[str, dict[What, str]]:
    """Of each row but the first and each figure: better or worse than the first row's, not resolved, of one seed alone.

    Better and worse are by Student's test, corrected for all of them (Holm). Top-1 that is neither may be level.
    """
    rows = experiment.rows[1:]
    contrasts = {
        (row.label, figure.what): _against_first(experiment, row, figure) for row in rows for figure in FIGURES
    }
    values = {key: list(greater.contrasts(results).values()) for key, greater in contrasts.items()}
    resolved = {key for key, p in corrected(contrasts, results).items() if p < 1 - statistics.CONFIDENCE}
    better = {figure.what: figure.better for figure in FIGURES}

    def said(key: tuple[str, What]) -> str:
        if not values[key]:
            return NOT_MEASURED
        if len(values[key]) == 1:
            return ONE_SEED
        if key in resolved:
            return "better" if better[key[1]] * fmean(values[key]) > 0 else "worse"
        narrower = statistics.estimate(values[key], statistics.EQUIVALENCE, contrasts[key].images(results))
        level = key[1] == "top1" and statistics.within(narrower, CLOSE) is Ruling.AGREES
        return f"level, within {CLOSE}" if level else "not resolved"

    return {row.label: {figure.what: said((row.label, figure.what)) for figure in FIGURES} for row in rows}


def in_words(said: Mapping[What, str]) -> str:
    """One verdict a line, figures of the same verdict together; what is resolved comes first."""
    titles: dict[str, list[str]] = {"better": [], "worse": []}
    for figure in FIGURES:
        titles.setdefault(said[figure.what], []).append(figure.title)
    titles = {verdict: of for verdict, of in titles.items() if of}
    return "\n".join(f"{verdict}: {'; '.join(of)}" for verdict, of in titles.items())


def answer(experiment: Experiment, results: Results) -> str:
    """The question, and what the runs say of it, in two sentences."""
    better, level = [], 0
    for label, said in verdicts(experiment, results).items():
        if said["top1"] not in ("better", "worse", NOT_MEASURED, ONE_SEED):
            level += 1
            gains = [figure.title for figure in FIGURES[1:] if said[figure.what] == "better"]
            better += [f"{label} ({', '.join(gains)})"] if gains else []
    if not level:
        return f"{QUESTION} Of no method do these runs say that it does not move."
    if not better:
        return f"{QUESTION} Of {level} whose top-1 is level or not resolved, these runs show it of none."
    return f"{QUESTION} Of {level} whose top-1 is level or not resolved, these runs show it of: {'; '.join(better)}."


NOTE = (
    "Speed-up: operations of the whole network over those of an image under a policy that is certified to lose at most "
    f"{DROP} points against the run's own last exit, with 95 % confidence for each run; thresholds from one half of "
    "the test images, the certificate from the other, both ways round, and the mean of the two; 1 where nothing can be "
    "certified. Counted, not timed. Early exits: all but the last. Differences to the first row are paired by seed, "
    "with 95 % intervals, each for itself; better and worse are by Student's test, corrected for all of them (Holm)."
)


def _against_first(experiment: Experiment, row: Row, figure: Figure) -> Greater:
    both = (Q(experiment.name, each.label, figure.what, figure.exits) for each in (row, experiment.rows[0]))
    return Greater(*both)


def by_row(experiment: Experiment, results: Results) -> dict[str, list[Estimate | None]]:
    """The differences of each row that has any, in the order of `FIGURES`; what the plot shows."""
    estimates = {
        row.label: [difference(experiment, row, figure, results) for figure in FIGURES] for row in experiment.rows[1:]
    }
    return {label: of for label, of in estimates.items() if any(of)}
