"""The league: every method that is compared, for any setting. A method of your own joins it by name (`own`)."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from offramp import objectives, registry, rules
from offramp.config import Run, Spec, resolve
from offramp.errors import UsageError
from offramp.objectives import Objective
from offramp.paper.identity import run_name, second_stage
from offramp.paper.scales import AS_IT_IS, PAPER, Recipe, Setting
from offramp.rules import TrainingRule

Chooser = Callable[[Setting], Spec]


@dataclass(frozen=True)
class Method:
    """A way to train, for any setting.

    Attributes:
        objective: The objective that a setting asks for.
        rule: The training rule that a setting asks for.
        work: How much more work an image is than for cross-entropy, about; estimates of time go by it.
        passes: Passes over the images that make one epoch of the method, from K.
        recipe: In what it is trained otherwise than the setting says: by default in nothing, as all that are compared.
        after: The method of a first stage, whose finished run is the teacher and has the network whose exits are
            trained anew (`identity.second_stage`).
    """

    label: str
    objective: Chooser = lambda setting: Spec("cross-entropy")
    rule: Chooser = lambda setting: Spec("standard")
    work: Callable[[int], float] = lambda num_exits: 1.0
    passes: Callable[[int], int] = lambda num_exits: 1
    recipe: Callable[[Setting], Recipe] = lambda setting: AS_IT_IS
    after: "Method | None" = None

    def run(
        self, setting: Setting, *, network: Spec | None = None, data: Spec | None = None, holdout: int | None = 0
    ) -> Run:
        """The configuration of seed 0 in a setting: as many epochs of the method as the setting has."""
        epochs = self.passes(setting.exits) * setting.epochs
        objective, rule, recipe = self.objective(setting), self.rule(setting), self.recipe(setting)
        run = setting.run(objective, rule, network=network, data=data, holdout=holdout, epochs=epochs, recipe=recipe)
        if self.after is None:
            return run
        return second_stage(run, run_name(self.after.run(setting, network=network, data=data, holdout=holdout)))


_OF_THE_SETTING: Mapping[str, Callable[[Setting], Mapping[str, Any]]] = {
    "damping": lambda setting: {"strength": setting.strength},
    "power-sqrt": lambda setting: {"strength": setting.strength},
    "dynamic": lambda setting: {"strength": setting.strength, "alpha": setting.alpha},
    "wpn": lambda setting: {"epsilon": setting.alpha, **setting.wpn},
}


def fitted(name: str, /, **more: Any) -> Chooser:
    """An objective or a rule; lambda, alpha and WPN's arguments are the setting's where `more` says nothing of them."""

    def choose(setting: Setting) -> Spec:
        arguments = {**_OF_THE_SETTING[name](setting), **more} if name in _OF_THE_SETTING else more
        return Spec(name, arguments)

    return choose


def plainly(name: str, **arguments: Any) -> Chooser:
    """The same in every setting."""
    return lambda setting: Spec(name, arguments)


def deeper_is_more(setting: Setting) -> Spec:
    """Damping whose lambda rises in a straight line with depth, to the setting's at the last exit (Eq. 3).

    Section 3.4 says that a lambda for each exit can do better than one for all, and that a high one lowers shallow
    exits; it names no values.
    """
    K = setting.exits
    return Spec("damping", {"strength": [round(setting.strength * (k + 1) / K, 6) for k in range(K)]})


def rivals(rule: str) -> Callable[[Setting], Recipe]:
    """What its authors trained a rule with; the setting's own recipe where the setting knows nothing of them."""
    return lambda setting: setting.rivals.get(rule, AS_IT_IS)


def _backward_passes(num_exits: int) -> float:
    """One forward pass and K backward ones, a backward pass being twice the work; they share less and less."""
    return (1 + num_exits) / 3 + 1 / 3


CROSS_ENTROPY = Method("cross-entropy")
DAMPING = Method("damping", fitted("damping"))
SMALLER = Method("damping, λ/√K", fitted("damping", per_sqrt_exits=True))
POWER_SQRT = Method("power-sqrt", fitted("power-sqrt"))
DYNAMIC = Method("dynamic", fitted("dynamic"))
WITH_GRADIENT = Method("dynamic with gradient", fitted("dynamic", with_gradient=True))
LABEL_SMOOTHING = Method("label smoothing", plainly("label-smoothing", smoothing=0.1))
WPN = Method("WPN", rule=fitted("wpn"), work=lambda num_exits: 3.0)
WPN_OWN = dataclasses.replace(WPN, label="WPN, its own recipe", recipe=rivals("wpn"))
# Each half of a batch is as large as the batches of the others; by rate per image that is its authors' recipe as well.
WPN_LARGER = dataclasses.replace(
    WPN, label="WPN, twice the batch", recipe=lambda s: Recipe(batch_size=2 * s.batch_size)
)
DFS = Method("DFS", rule=plainly("dfs"))
DFS_OWN = Method("DFS, its own recipe", rule=plainly("dfs", dropout=0.5), recipe=rivals("dfs"))
BY_DEPTH = Method("damping, λ rising with depth", deeper_is_more)
OVER_BATCH = Method("dynamic, over the batch (mat)", fitted("dynamic", over="batch"))
GRADIENT_EQUILIBRIUM = Method("gradient equilibrium", rule=plainly("gradient-equilibrium"))
CGT = Method("CGT", rule=plainly("cgt"))

_LEAGUE: tuple[Method, ...] = (
    CROSS_ENTROPY,
    DAMPING,
    SMALLER,
    BY_DEPTH,
    POWER_SQRT,
    DYNAMIC,
    Method("dynamic, tanh (R3)", fitted("dynamic", normalisation="tanh")),
    Method("dynamic, tanh, in the root (R3, W3)", fitted("dynamic", normalisation="tanh", applied_to="root")),
    Method(
        "dynamic, tanh, on cross-entropy (R3, W1)",
        fitted("dynamic", normalisation="tanh", applied_to="cross-entropy"),
    ),
    Method("dynamic, reversed", fitted("dynamic", reverse=True)),
    Method("dynamic, centred (R4)", fitted("dynamic", normalisation="centre")),
    Method("dynamic, centred and clipped (R4)", fitted("dynamic", normalisation="centre-clipped")),
    LABEL_SMOOTHING,
    WPN,
    WPN_OWN,
    WPN_LARGER,
    DFS,
    DFS_OWN,
    GRADIENT_EQUILIBRIUM,
    Method("IMTA", after=GRADIENT_EQUILIBRIUM),
    Method("PCGrad", rule=plainly("pcgrad"), work=_backward_passes),
    Method("CAGrad", rule=plainly("cagrad"), work=_backward_passes),
    Method("Meta-GF", rule=plainly("meta-gf"), passes=lambda num_exits: num_exits + 1),
    CGT,
    Method("CGT, hard gate", rule=plainly("cgt", gate="hard")),
    Method("CGT, weights sum to K", rule=plainly("cgt", total="exits")),
    *(
        Method(
            f"CGT, {gate} gate, its own recipe",
            LABEL_SMOOTHING.objective,
            plainly("cgt", gate=gate),
            recipe=rivals("cgt"),
        )
        for gate in ("hard", "soft")
    ),
)
# discard-threshold has tables of its own (Table 3 and Figure 3); one-for-all is the rule of IMTA's second stage.
_ELSEWHERE = {"discard-threshold", "one-for-all", "standard"}


def _unlisted() -> Iterator[Method]:
    """Registered objectives and rules of which no method above is made, each as it is."""
    listed = {choose(PAPER["cifar100"]).name for method in _LEAGUE for choose in (method.objective, method.rule)}
    for name in (*registry.OBJECTIVES, *registry.RULES):
        if name not in listed | _ELSEWHERE:
            yield own(Spec(name))


def own(spec: Spec) -> Method:
    """A method of your own: an objective or a training rule with arguments, or a `Method` that combines both.

    Registered damping objectives and WPN take from the setting what the arguments leave out: lambda, alpha and so on.

    Raises:
        UsageError: Arguments that it does not take.
    """
    method = resolve(spec.name, {**objectives.OBJECTIVES, **rules.RULES}, "method")
    if isinstance(method, Method):
        if spec.args:
            raise UsageError(f"method {spec.name!r} is a Method, which takes no arguments ({', '.join(spec.args)}).")
        return method
    if inspect.isclass(method) and issubclass(method, TrainingRule):
        rules.build(spec)  # a wrong argument is refused now, not in an hour
        return Method(str(spec), rule=fitted(spec.name, **spec.args))
    objective = objectives.build(spec)
    assert isinstance(objective, Objective)
    return Method(str(spec), fitted(spec.name, **spec.args))


LEAGUE = (*_LEAGUE, *_unlisted())
"""All but those that say so have the setting's recipe, so that only the method differs."""
