import pytest

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.reproduce.methods import LEAGUE, own
from offramp.reproduce.scales import PAPER


def test_methods_of_ones_own() -> None:
    objective = own(Spec("damping", {"strength": 0.5})).run(PAPER["cifar100"])
    assert (objective.objective.name, objective.rule.name) == ("damping", "standard")
    rule = own(Spec("dfs", {"ratio": 0.3})).run(PAPER["cifar100"])
    assert (rule.objective.name, rule.rule.args) == ("cross-entropy", {"ratio": 0.3})
    assert own(Spec("offramp.reproduce.methods:WPN")) in LEAGUE
    with pytest.raises(UsageError, match="no argument 'ratoi'"):
        own(Spec("dfs", {"ratoi": 0.3}))
    with pytest.raises(UsageError, match=r"is a Method, which takes no arguments \(epsilon\)\.$"):
        own(Spec("offramp.reproduce.methods:WPN", {"epsilon": 0.1}))


def test_the_league_is_complete() -> None:
    """What the study has to compare at the least."""
    labels = [method.label for method in LEAGUE]
    assert len(set(labels)) == len(labels)
    rules = {method.rule(PAPER["cifar100"]).name for method in LEAGUE}
    assert rules == {"standard", "wpn", "dfs", "gradient-equilibrium", "pcgrad", "cagrad", "meta-gf", "cgt"}
    objectives = {str(method.objective(PAPER["cifar100"])) for method in LEAGUE}
    assert "damping strength=0.005 per_sqrt_exits=True" in objectives
    assert "dynamic strength=0.005 alpha=0.8 normalisation='tanh'" in objectives
