"""What a league or our own study says, in a few sentences: top-1, early exits, the mechanism, what could be found."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from offramp.paper import early_exits, statistics
from offramp.paper.experiments import Experiment, Row
from offramp.paper.judging import corrected
from offramp.paper.predicates import Greater, Q
from offramp.paper.results import Results


def sentences(experiment: Experiment, results: Results) -> tuple[str, ...]:
    """The answer, each sentence by itself; the methods in it are those with two seeds to set against the first row."""
    tested = p_values(experiment, results)
    first = experiment.rows[0]
    if not tested:
        return (f"No method has two seeds that {first.label} has too: nothing can be said yet.",)
    differences = {label: contrast for label, contrast in _contrasts(experiment).items() if label in tested}
    values = {label: list(contrast.contrasts(results).values()) for label, contrast in differences.items()}
    fewest, most = min(map(len, values.values())), max(map(len, values.values()))
    unlike = experiment.scale.unlike
    measured = f"Measured {unlike}: of" if unlike else "Of"
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    answers = [f"{measured} {_methods(len(tested))}, {each} seeds each, {_top1(differences, tested, first, results)}"]
    answers.append(early_exits.answer(experiment, results))
    if mechanism := _mechanism(experiment, tested, results):
        answers.append(mechanism)
    detectable = max(
        statistics.detectable(of, len(tested), differences[label].images(results))
        for label, of in values.items()
        if len(of) == most
    )
    answers.append(
        f"What could be found: with {most} seeds and differences that spread like these, a true gain or loss of "
        f"{detectable:.1f} points of top-1 would be significant in four of five such studies; a smaller one needs more "
        "seeds, and what holds of these data, this network and this budget may not hold of others."
    )
    return tuple(answers)


def p_values(experiment: Experiment, results: Results) -> dict[str, float]:
    """By row with two seeds against the first: the p of its top-1 averaged over exits, corrected for all (Holm)."""
    return corrected(_contrasts(experiment), results)


def _contrasts(experiment: Experiment) -> dict[str, Greater]:
    first, *others = (Q(experiment.name, row.label) for row in experiment.rows)
    return {other.row: Greater(other, first) for other in others}


def _methods(count: int) -> str:
    return "one method" if count == 1 else f"{count} methods"


def _top1(differences: Mapping[str, Greater], tested: Mapping[str, float], first: Row, results: Results) -> str:
    """Who is better and worse than the first row."""
    estimates = {label: contrast.estimate(results) for label, contrast in differences.items()}
    of = {label: estimate for label, estimate in estimates.items() if estimate is not None}
    resolved = [label for label, p in tested.items() if p < 1 - statistics.CONFIDENCE]
    by = "in top-1 averaged over exits (Student's test, 5 %, corrected for all of them by Holm)"
    if not resolved:
        furthest = max(of, key=lambda label: abs(of[label].mean))
        return f"none differs significantly from {first.label} {by}; furthest is {furthest}, {of[furthest].text()}."

    def listed(labels: Sequence[str]) -> str:
        return "; ".join(f"{label} {of[label].text()}" for label in labels) or "none"

    better = listed([label for label in resolved if of[label].mean > 0])
    worse = listed([label for label in resolved if of[label].mean < 0])
    rest = listed([label for label in tested if label not in resolved])
    significant = f"significantly better than {first.label}: {better}. Worse: {worse}."
    return f"{by}: {significant} No significant difference: {rest}."


def _mechanism(experiment: Experiment, labels: Iterable[str], results: Results) -> str:
    """Whether learned images push less where gradients are damped; nothing where no gradients were recorded."""

    def share(label: str) -> float | None:
        values = Q(experiment.name, label, "learned").by_seed(results)
        return fmean(values.values()) if values else None

    first = experiment.rows[0].label
    by_row = [(label, of) for label in (first, *labels) if (of := share(label)) is not None]
    if len(by_row) < 2 or by_row[0][0] != first:
        return ""
    listed = "; ".join(f"{label} {100 * of:.1f} %" for label, of in by_row)
    return (
        f"Does the mechanism happen? Share of the push that comes from learned images, over exits and epochs: {listed}."
    )
