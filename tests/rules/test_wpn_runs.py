"""Whole runs of WPN, and several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

import offramp
from offramp.config import TrainConfig
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.objectives import PowerSqrt, dynamic
from offramp.rules import WPN, build
from offramp.storage import load_tensors


@pytest.mark.parametrize(
    "option",
    [
        {},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adamw", "channels_last": True}, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    images, network_of, interrupted, tmp_path: Path, option: dict[str, Any]
) -> None:
    parts = images()
    config = TrainConfig(epochs=3, lr=0.02, save_every_steps=2, **option)

    def fit(out: str) -> None:
        torch.rand(len(out))  # what was drawn before must not matter
        rule = WPN(interval=2, meta_lr=0.01)
        offramp.fit(network_of(), PowerSqrt(), parts.train, parts.val, config, out=tmp_path / out, rule=rule)

    # One image before training, two batches with two halves each, and a half; the meta-network is in the checkpoint.
    calm = interrupted(fit, PowerSqrt, "terms", 7, checkpoint=True)
    lines = calm.read_metrics()
    assert lines[-1].loss < lines[0].loss
    assert lines[-1].search_top1[-1] > 80
    weight_K = lines[-1].stats["weight"]
    assert sum(weight_K) == pytest.approx(3)
    assert max(weight_K) > 1.001
    described = calm.read_config().rule
    assert build(described).settings() == WPN(interval=2, meta_lr=0.01).settings()


def test_one_exit(images, network_of, tmp_path: Path) -> None:
    parts = images()
    config = TrainConfig(epochs=1, lr=0.02)
    with pytest.raises(UsageError, match="all 1 where there is one exit; use centre=row"):
        offramp.fit(network_of(1), dynamic(), parts.train, config=config, out=tmp_path / "col", rule=WPN())
    assert not (tmp_path / "col").exists()
    offramp.fit(network_of(1), dynamic(), parts.train, config=config, out=tmp_path / "row", rule=WPN(centre="row"))
    assert RunFolder(tmp_path / "row").weights.is_file()


def test_a_form_is_said_to_have_no_effect(
    images, network_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(epochs=1, lr=0.02, form="compiled")
    offramp.fit(network_of(), dynamic(), images().train, config=config, out=tmp_path, rule=WPN())
    assert "WPN trains the network as it is; form compiled has no effect" in capsys.readouterr().err


def test_two_processes_with_the_same_images_take_the_steps_of_one(tmp_path: Path, together) -> None:
    for number in (1, 2):
        together(number, Path(__file__).with_name("wpn_steps.py"), tmp_path / str(number))
    one, two = (load_tensors(tmp_path / out)[0] for out in "12")
    assert one["rule.adam.step.perceptron.0.weight"] == 4
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
