"""A finished run made by hand: a tiny network with random weights, tiny made-up images, metrics of four epochs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp import data, training
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.network import EarlyExitNet, builder
from offramp.reports import Evaluation, evaluate
from offramp.storage import save_tensors


@builder
def tiny_network(*, exits: int = 3, num_classes: int = 4, damping: bool = True) -> EarlyExitNet:
    channels = [1, *[4] * (exits - 1)]
    stages = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for c in channels]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes + damping)) for _ in stages]
    return EarlyExitNet(stages, heads, num_classes=num_classes, damping=damping, image_shape=(1, 8, 8))


def tiny_data(
    *, num_classes: int = 4, images_seed: int = 0, batch_size: int = 16, holdout: int | None = 8
) -> data.Parts:
    numbers = np.random.default_rng(images_seed)
    images, labels = numbers.integers(0, 256, (100, 8, 8), dtype=np.uint8), np.arange(100) % num_classes
    arguments = {"class_names": [f"<{n}>" for n in range(num_classes)], "batch_size": batch_size, "holdout": holdout}
    return data.arrays(images[:60], labels[:60], images[60:], labels[60:], **arguments)


def metrics(K: int, damping: bool, searched: bool) -> list[dict[str, Any]]:
    def per_exit(top: float) -> list[float]:
        return [top * (k + 1) / K for k in range(K)]

    return [
        {
            "epoch": epoch,
            "step": 4 * epoch,
            "lr": 0.1 / epoch,
            "loss": K / epoch,
            "train_top1": per_exit(50 + epoch),
            "search_top1": per_exit(40 + epoch) if searched else None,
            "search_nll": per_exit(1 / epoch) if searched else None,
            "stats": {"of_my_own": per_exit(2.0), **({"F_damping": per_exit(0.01)} if damping else {})},
        }
        for epoch in range(1, 5)
    ]


def write_run(
    folder: Path,
    *,
    exits: int = 3,
    damping: bool = True,
    num_classes: int = 4,
    seed: int = 0,
    objective: dict[str, Any] | None = None,
    searched: bool = True,
    **config: Any,
) -> Path:
    """A finished run's folder; `config` changes entries of its config.json."""
    torch.manual_seed(seed)
    network = tiny_network(exits=exits, damping=damping, num_classes=num_classes)
    source = {"name": f"{__name__}:tiny_data", "args": {"num_classes": num_classes}}
    values = {
        "format": 1,
        "offramp": offramp.__version__,
        "data": {"source": source, "root": None, "batch_size": 16, "holdout": 8, "workers": 0},
        "network": network.spec.to_json(),
        "objective": objective or {"name": "offramp.objectives.damping:Damping", "args": {"strength": 0.005}},
        "rule": {"name": "offramp.rules.standard:Standard", "args": {}},
        "training": {"epochs": 4, "seed": seed, "lr": 0.1, "keep_checkpoints": 2},
        **config,
    }
    save_tensors(folder / "weights.safetensors", network.state_dict(), {"network": "null"})
    (folder / "config.json").write_text(json.dumps(values))
    lines = [json.dumps(line) + "\n" for line in metrics(exits, damping, searched)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    start = {
        "command": "offramp train --data '<tiny>' --out run",
        "device": "cpu: made up",
        "torch": "2.0",
        "python": "3.11",
        "offramp": offramp.__version__,
        "git": {"commit": "abc123", "changed": True},
    }
    (folder / "environment.json").write_text(json.dumps([{**start, "command": "an earlier start"}, start]))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, exits=3, ...)` gives a finished run's folder: see `write_run`."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A run with its page, made once and only looked at."""
    return evaluate(write_run(tmp_path_factory.mktemp("reported") / "run"))


@pytest.fixture
def tiny_parts() -> data.Parts:
    return tiny_data()


# -- a run to be judged by a verdict -----------------------------------------------------------------------------------


def _trained(folder: Path, objective: str = "power-sqrt", rule: str = "standard", **settings: Any) -> Path:
    images = DataConfig(source=Spec("digits", {"limit": 500}), batch_size=100, holdout=200)
    knobs = {"exits": 2, "channels": 4, "growth": 2, "growth_factors": (1, 2), "head_channels": 8}
    config = TrainConfig(epochs=2, lr=0.05, form="plain", **settings)
    made = Run(data=images, objective=Spec(objective), network=Spec("msdnet", knobs), rule=Spec(rule), training=config)
    training.train(made, folder)
    return folder


@pytest.fixture(scope="session")
def run_of() -> Callable[..., Path]:
    """A function that trains a small run in a folder, with an objective, a rule and fields of `TrainConfig`."""
    return _trained


@pytest.fixture(scope="session")
def judged_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once."""
    return _trained(tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture
def judged(judged_once: Path, tmp_path: Path) -> Path:
    """A small run that a verdict may judge, without anything made later."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "split.json", "metrics.jsonl"):
        (folder / name).write_bytes((judged_once / name).read_bytes())
    return folder
