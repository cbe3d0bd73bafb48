"""Training objectives. A new one is a file here and a line in `registry`."""

from collections.abc import Mapping
from typing import Any

from offramp import config, registry
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.objectives.base import Objective, Terms, check_fits, settings_of
from offramp.objectives.cross_entropy import CrossEntropy
from offramp.objectives.damping import Damping
from offramp.objectives.discard_threshold import DiscardThreshold
from offramp.objectives.dynamic_training import dynamic
from offramp.objectives.label_smoothing import LabelSmoothing
from offramp.objectives.power_sqrt import PowerSqrt
from offramp.objectives.weighting import DynamicWeights

OBJECTIVES: Mapping[str, Any] = registry.load(registry.OBJECTIVES)
"""Every objective that has a name."""

__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "Damping",
    "DiscardThreshold",
    "DynamicWeights",
    "LabelSmoothing",
    "Objective",
    "PowerSqrt",
    "Terms",
    "build",
    "check_fits",
    "describe",
    "dynamic",
]


def build(spec: Spec) -> Objective:
    """The objective that `spec` names: registered, or a class or function `package.module:Name` that gives one."""
    objective = config.build(spec, OBJECTIVES, "objective")
    if not isinstance(objective, Objective):
        raise UsageError(
            f"objective {spec.name!r} gives a {type(objective).__name__}, not an offramp.objectives.Objective."
        )
    return objective


def describe(objective: Objective) -> dict[str, Any]:
    """What `objective` is, as the JSON form of a `Spec`: its class, and its fields as arguments.

    Equal for equal objectives however they were made, so that runs can be compared; `build` takes it back. Of a class
    that is no dataclass, the public attributes that JSON can hold.
    """
    return {"name": f"{type(objective).__module__}:{type(objective).__qualname__}", "args": settings_of(objective)}
