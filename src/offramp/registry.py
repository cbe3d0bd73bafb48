"""Every objective, rule, backbone, data set and command by name, as `module:attribute` in this package.

A new one is its file and a line here: the command line, its help, `offramp names`, the study's league and the
tests that hold for all read these tables. Nothing is imported until `load`, so that help needs no torch.
"""

import importlib
from collections.abc import Mapping
from typing import Any

OBJECTIVES: Mapping[str, str] = {
    "cross-entropy": "objectives.cross_entropy:CrossEntropy",
    "damping": "objectives.damping:Damping",
    "discard-threshold": "objectives.discard_threshold:DiscardThreshold",
    "dynamic": "objectives.dynamic_training:dynamic",
    "label-smoothing": "objectives.label_smoothing:LabelSmoothing",
    "power-sqrt": "objectives.power_sqrt:PowerSqrt",
}
RULES: Mapping[str, str] = {
    "cagrad": "rules.cagrad:CAGrad",
    "cgt": "rules.cgt:CGT",
    "dfs": "rules.dfs:DFS",
    "gradient-equilibrium": "rules.gradient_equilibrium:GradientEquilibrium",
    "meta-gf": "rules.meta_gf:MetaGF",
    "one-for-all": "rules.one_for_all:OneForAll",
    "pcgrad": "rules.pcgrad:PCGrad",
    "standard": "rules.standard:Standard",
    "wpn": "rules.wpn:WPN",
}
BACKBONES: Mapping[str, str] = {  # presets of them stand in backbones/presets.py
    "collaborating": "backbones.collaboration:collaborating",
    "msdnet": "backbones.msdnet:msdnet",
    "prefix": "backbones.prefix:prefix",
    "ranet": "backbones.ranet:ranet",
}
DATA: Mapping[str, str] = {
    "cifar10": "data.cifar:cifar10",
    "cifar100": "data.cifar:cifar100",
    "digits": "data.sklearn_digits:digits",
    "fashion-mnist": "data.fashion:fashion_mnist",
    "fashion-pairs": "data.pairs:fashion_pairs",
    "folder:PATH": "data.class_folders:folder",
    "garments": "data.garment_subset:garments",
    "imagenet": "data.class_folders:imagenet",
}
COMMAND_GROUPS: Mapping[str, Mapping[str, str]] = {  # in the order of `offramp --help`
    "Train": {
        "train": "commands.train:TrainOptions",
        "names": "commands.names:NamesOptions",
        "cost": "commands.cost:CostOptions",
        "layers": "commands.layers:LayersOptions",
        "import": "commands.import_:ImportOptions",
        "example": "commands.example:ExampleOptions",
    },
    "Measure": {
        "evaluate": "commands.evaluate:EvaluateOptions",
        "compare": "commands.compare:CompareOptions",
        "bench": "commands.bench:BenchOptions",
        "verdict": "commands.verdict:VerdictOptions",
        "xray": "commands.xray:XrayOptions",
    },
    "Promise": {
        "policy": "commands.policy:PolicyOptions",
        "certify": "commands.certify:CertifyOptions",
        "audit": "commands.audit:AuditOptions",
    },
    "Use": {
        "predict": "commands.predict:PredictOptions",
        "export": "commands.export:ExportOptions",
        "serve": "commands.serve:ServeOptions",
        "demo": "commands.demo:DemoOptions",
    },
    "Study": {
        "reproduce": "commands.reproduce:ReproduceOptions",
    },
}
COMMANDS: Mapping[str, str] = {name: path for group in COMMAND_GROUPS.values() for name, path in group.items()}


def load(registry: Mapping[str, str]) -> dict[str, Any]:
    """What the names of a registry stand for, imported."""
    paths = {name: path.partition(":") for name, path in registry.items()}
    return {name: getattr(importlib.import_module(f"offramp.{p[0]}"), p[2]) for name, p in paths.items()}


def called(description: Mapping[str, Any]) -> str:
    """The registered name of what `objectives.describe` described: a damping form under weights is `dynamic`."""
    names = {f"offramp.{place}": name for name, place in OBJECTIVES.items()}
    name: str = names.get(description["name"], description["name"])
    weighted = description["args"].get("weighting") is not None
    return {"power-sqrt": "dynamic", "damping": "dynamic form=damping"}.get(name, name) if weighted else name
