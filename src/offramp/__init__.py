"""offramp: early-exiting image classifiers. Public names load when first used, so importing this imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offramp import backbones, commands, data, evaluation, export, objectives, rules, runtime, shipped, training
    from offramp.config import DataConfig, Run, Spec, TrainConfig
    from offramp.costs import cost
    from offramp.loading import load
    from offramp.network import EarlyExitNet, class_log_probs
    from offramp.policy import Measure, Policy
    from offramp.runtime import Engine
    from offramp.training.fit import fit, train

__version__ = "0.1.0"

_HOME = {  # public name -> module that defines it
    "DataConfig": "offramp.config",
    "EarlyExitNet": "offramp.network",
    "Engine": "offramp.runtime",
    "Measure": "offramp.policy",
    "Policy": "offramp.policy",
    "Run": "offramp.config",
    "Spec": "offramp.config",
    "TrainConfig": "offramp.config",
    "class_log_probs": "offramp.network",
    "cost": "offramp.costs",
    "fit": "offramp.training",
    "load": "offramp.loading",
    "train": "offramp.training",
}

__all__ = [
    "DataConfig",
    "EarlyExitNet",
    "Engine",
    "Measure",
    "Policy",
    "Run",
    "Spec",
    "TrainConfig",
    "backbones",
    "class_log_probs",
    "commands",
    "cost",
    "data",
    "evaluation",
    "export",
    "fit",
    "load",
    "objectives",
    "rules",
    "runtime",
    "shipped",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:  # a room
        return importlib.import_module(f"offramp.{name}")
    raise AttributeError(f"module 'offramp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
