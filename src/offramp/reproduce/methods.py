"""The league: every method that is compared, for any setting. A method of your own joins it by name (`own`)."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offramp import objectives, rules
from offramp.config import Run, Spec, resolve
from offramp.errors import UsageError
from offramp.objectives import Objective
from offramp.reproduce.scales import Setting
from offramp.rules import TrainingRule

Chooser = Callable[[Setting], Spec]


@dataclass(frozen=True)
class Method:
    """A way to train, for any setting.

    Attributes:
        label: In tables.
        objective: The objective that a setting asks for.
        rule: The training rule that a setting asks for.
        work: How much more work an image is than for cross-entropy, about; estimates of time go by it.
        passes: Passes over the images that make one epoch of the method, from K.
    """

    label: str
    objective: Chooser = lambda setting: Spec("cross-entropy")
    rule: Chooser = lambda setting: Spec("standard")
    work: Callable[[int], float] = lambda num_exits: 1.0
    passes: Callable[[int], int] = lambda num_exits: 1

    def run(
        self, setting: Setting, *, network: Spec | None = None, data: Spec | None = None, holdout: int | None = 0
    ) -> Run:
        """The configuration of seed 0 in a setting: as many epochs of the method as the setting has."""
        epochs = self.passes(setting.exits) * setting.epochs
        objective, rule = self.objective(setting), self.rule(setting)
        return setting.run(objective, rule, network=network, data=data, holdout=holdout, epochs=epochs)

    def called(self, label: str) -> "Method":
        """The same under the name that a table has for it."""
        return dataclasses.replace(self, label=label)


def damped(name: str, **more: Any) -> Chooser:
    """The objective `name` with the setting's lambda."""
    return lambda setting: Spec(name, {"strength": setting.strength, **more})


def dynamic(**more: Any) -> Chooser:
    """Dynamic training with the setting's lambda and alpha."""
    return lambda setting: Spec("dynamic", {"strength": setting.strength, "alpha": setting.alpha, **more})


def plainly(name: str, **arguments: Any) -> Chooser:
    """The same in every setting."""
    return lambda setting: Spec(name, arguments)


def _backward_passes(num_exits: int) -> float:
    """One forward pass and K backward ones, a backward pass being twice the work; they share less and less."""
    return (1 + num_exits) / 3 + 1 / 3


CROSS_ENTROPY = Method("cross-entropy")
DAMPING = Method("damping", damped("damping"))
SMALLER = Method("damping, λ/√K", damped("damping", per_sqrt_exits=True))
POWER_SQRT = Method("power-sqrt", damped("power-sqrt"))
DYNAMIC = Method("dynamic", dynamic())
WITH_GRADIENT = Method("dynamic with gradient", dynamic(with_gradient=True))
LABEL_SMOOTHING = Method("label smoothing", plainly("label-smoothing", smoothing=0.1))
WPN = Method(
    "WPN", rule=lambda setting: Spec("wpn", {"epsilon": setting.alpha, **setting.wpn}), work=lambda num_exits: 3.0
)
DFS = Method("DFS", rule=plainly("dfs"))

LEAGUE: tuple[Method, ...] = (
    CROSS_ENTROPY,
    DAMPING,
    SMALLER,
    POWER_SQRT,
    DYNAMIC,
    Method("dynamic, tanh (R3)", dynamic(normalisation="tanh")),
    Method("dynamic, tanh, in the root (R3, W3)", dynamic(normalisation="tanh", applied_to="root")),
    Method("dynamic, tanh, on cross-entropy (R3, W1)", dynamic(normalisation="tanh", applied_to="cross-entropy")),
    Method("dynamic, reversed", dynamic(reverse=True)),
    LABEL_SMOOTHING,
    WPN,
    DFS,
    Method("gradient equilibrium", rule=plainly("gradient-equilibrium")),
    Method("PCGrad", rule=plainly("pcgrad"), work=_backward_passes),
    Method("CAGrad", rule=plainly("cagrad"), work=_backward_passes),
    Method("Meta-GF", rule=plainly("meta-gf"), passes=lambda num_exits: num_exits + 1),
    Method("CGT", rule=plainly("cgt")),
)
"""IMTA is not in it: its second stage starts from a finished run, which no configuration by itself can name."""


def own(spec: Spec) -> Method:
    """A method of your own: an objective or a training rule with arguments, or a `Method` that combines both.

    Args:
        spec: A registered name or `package.module:Name`.

    Raises:
        UsageError: Arguments that it does not take.
    """
    found = resolve(spec.name, {**objectives.OBJECTIVES, **rules.RULES}, "method")
    if isinstance(found, Method):
        if spec.args:
            raise UsageError(f"method {spec.name!r} is a Method, which takes no arguments ({', '.join(spec.args)}).")
        return found
    if inspect.isclass(found) and issubclass(found, TrainingRule):
        rules.build(spec)  # a wrong argument is refused now, not in an hour
        return Method(str(spec), rule=lambda setting: spec)
    made = objectives.build(spec)
    assert isinstance(made, Objective)
    return Method(str(spec), lambda setting: spec)
