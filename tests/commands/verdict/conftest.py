"""A run to be judged by a verdict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp import training
from offramp.commands.open_run import parts_of
from offramp.commands.verdict.prefixes import Prefixes
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.files import RunFolder, load


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
def run(judged_once: Path, tmp_path: Path) -> Path:
    """A small run that a verdict may judge, without anything made later."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "split.json", "metrics.jsonl"):
        (folder / name).write_bytes((judged_once / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def prefixes() -> Callable[..., Prefixes]:
    """A function from a run, and the folder of their runs, to its smaller networks."""

    def made(run: Path, runs: Path | None = None) -> Prefixes:
        folder = RunFolder(run)
        config = folder.read_config()
        return Prefixes(folder, load(run), config, parts_of(folder, config, None, ""), runs or run / "verdict")

    return made
