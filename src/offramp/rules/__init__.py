"""Training rules: what happens to a batch. A new one is a file here and a line in `registry`."""

from collections.abc import Mapping
from typing import Any

from offramp import config, registry
from offramp.config import Spec
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

RULES: Mapping[str, Any] = registry.load(registry.RULES)
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
    rule: TrainingRule = config.build(spec, RULES, "rule", TrainingRule)
    return rule
