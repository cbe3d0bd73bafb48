"""The paper's full method by one name: a damping loss under dynamic weights (section 3.5)."""

from typing import Literal

from offramp.checks import check_name
from offramp.objectives.damping import Damping
from offramp.objectives.power_sqrt import PowerSqrt
from offramp.objectives.weighting import DynamicWeights, Normalisation, Range, Target


def dynamic(
    form: Literal["power-sqrt", "damping"] = "power-sqrt",
    *,
    strength: float | tuple[float, ...] = 0.005,
    alpha: float = 0.8,
    normalisation: Normalisation = "max",
    over: Range = "exits",
    applied_to: Target = "gradient",
    reverse: bool = False,
    with_gradient: bool = False,
) -> PowerSqrt | Damping:
    """Dynamic training: `form` (the paper's is power-sqrt) weighted by `DynamicWeights` of the other arguments."""
    check_name("form", form, ("power-sqrt", "damping"))
    weighting = DynamicWeights(
        alpha=alpha,
        normalisation=normalisation,
        over=over,
        applied_to=applied_to,
        reverse=reverse,
        with_gradient=with_gradient,
    )
    if form == "damping":
        return Damping(strength, weighting=weighting)
    return PowerSqrt(strength, weighting=weighting)  # type: ignore[arg-type] # one per exit is refused there
