"""Where a run's lambda, alpha and held-out images are not what the paper has for its data."""

from offramp import objectives
from offramp.config import Run
from offramp.paper.scales import PAPER

DAMPED = ("damping", "power-sqrt", "dynamic")


def unlike_the_papers(run: Run) -> str | None:
    """A sentence with the paper's numbers and the run's; None where they are the same, or the data are not the paper's.

    Raises:
        UsageError: An objective that cannot be built.
    """
    name = run.data.source.name
    setting = next((setting for setting in PAPER.settings.values() if setting.data.name == name), None)
    if setting is None:
        return None
    pairs = []
    if run.objective.name in DAMPED:
        objective = objectives.build(run.objective)
        pairs.append(("λ", setting.strength, getattr(objective, "strength", None)))
        if weighting := getattr(objective, "weighting", None):
            pairs.append(("α", setting.alpha, weighting.alpha))
    pairs.append(("holdout", 0, setting.held_out if run.data.holdout is None else run.data.holdout))
    differences = [f"{what} {papers:g}, not {_shown(ours)}" for what, papers, ours in pairs if ours != papers]
    return f"The paper's tables on {name} have {'; '.join(differences)}." if differences else None


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else f"({', '.join(map(str, value))})"  # type: ignore[call-overload]
