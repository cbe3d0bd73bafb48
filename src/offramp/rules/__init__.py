"""Training rules: what happens to a batch. One file per published rule; a new one is a file and a line below."""

from typing import Any

from offramp import config
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.rules.base import Outcome, TrainingRule, Workbench
from offramp.rules.cagrad import CAGrad
from offramp.rules.cgt import CGT
from offramp.rules.dfs import DFS
from offramp.rules.gradient_equilibrium import GradientEquilibrium
from offramp.rules.meta_gf import MetaGF
from offramp.rules.one_for_all import OneForAll
from offramp.rules.pcgrad import PCGrad
from offramp.rules.standard import Standard
from offramp.rules.wpn import WPN

RULES: dict[str, Any] = {
    "cagrad": CAGrad,
    "cgt": CGT,
    "dfs": DFS,
    "gradient-equilibrium": GradientEquilibrium,
    "meta-gf": MetaGF,
    "one-for-all": OneForAll,
    "pcgrad": PCGrad,
    "standard": Standard,
    "wpn": WPN,
}
"""Every rule that has a name."""

__all__ = [
    "CGT",
    "DFS",
    "RULES",
    "WPN",
    "CAGrad",
    "GradientEquilibrium",
    "MetaGF",
    "OneForAll",
    "Outcome",
    "PCGrad",
    "Standard",
    "TrainingRule",
    "Workbench",
    "build",
]


def build(spec: Spec) -> TrainingRule:
    """The rule that `spec` names: registered, or `package.module:Name`."""
    rule = config.build(spec, RULES, "rule")
    if not isinstance(rule, TrainingRule):
        raise UsageError(f"rule {spec.name!r} gives a {type(rule).__name__}, not an offramp.rules.TrainingRule.")
    return rule
