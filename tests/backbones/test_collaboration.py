"""The chain of exits, against the same computed exit by exit with the parts of the run it was made from."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp
from offramp import backbones, data
from offramp.backbones.collaboration import chained, collaborating
from offramp.config import Spec, TrainConfig
from offramp.errors import UsageError
from offramp.files import load
from offramp.network import EarlyExitNet
from offramp.objectives import PowerSqrt
from offramp.policy import EVERYBODY, Policy
from offramp.rules import GradientEquilibrium, OneForAll
from offramp.runtime.agreement import agreement

FAMILIES: dict[str, dict[str, Any]] = {
    "msdnet": {"exits": 3, "channels": 4, "growth": 2, "growth_factors": (1, 2)},
    "ranet": {"scales": (1, 2), "blocks": 2, "block_step": 1, "growth_factors": (2, 1), "channels": 4, "growth": 4,
              "step": 1},
}  # fmt: skip


def images() -> data.Parts:
    """Two classes told apart by brightness, 16 x 16 pixels."""
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).integers(0, 100, (60, 1, 16, 16))
    pixels = (noise + 150 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return data.arrays(pixels, labels, batch_size=16, holdout=10)


@pytest.fixture(params=FAMILIES)
def first(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run of the first stage."""
    torch.manual_seed(1)
    network = backbones.NETWORKS[request.param](
        num_classes=2, damping=True, head_channels=8, image_size=16, in_channels=1, **FAMILIES[request.param]
    )
    out = tmp_path / "first"
    config = TrainConfig(epochs=1, lr=0.05)
    offramp.fit(network, PowerSqrt(), images().train, config=config, out=out, rule=GradientEquilibrium())
    return str(out)


def test_outputs_are_those_of_the_description(first: str) -> None:
    base, network = load(first).double(), collaborating(first).double().eval()
    for stage in network.stages[1:]:
        torch.nn.init.normal_(stage.hear[1].running_mean)
        torch.nn.init.uniform_(stage.hear[1].running_var)
    pixels = torch.randn(5, 1, 16, 16, dtype=torch.float64)
    carry, before, wanted = (pixels,), None, []
    for k, stage in enumerate(network.stages):
        carry = base.run_stage(k, carry)
        x = base.exits[k][:-1](carry[base.reads[k]])
        if before is not None:
            linear, norm, _ = stage.hear
            h = before @ linear.weight.T + linear.bias
            h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            x = torch.cat([x, h.clamp_min(0)], 1)
        before = x @ stage.linear.weight.T + stage.linear.bias
        wanted.append(before)
    torch.testing.assert_close(network(pixels), torch.stack(wanted))


def test_gradients_run_through_the_chain_and_reach_nothing_frozen(first: str) -> None:
    network = collaborating(first).train()
    new = {n for n, p in network.named_parameters() if p.requires_grad}
    assert new == {n for n, _ in network.named_parameters() if ".hear." in n or ".linear." in n}
    network(torch.randn(5, 1, 16, 16))[-1].sum().backward()
    assert all(network.get_parameter(name).grad is not None for name in new)
    assert network.stages[0].linear.weight.grad.abs().max() > 0
    assert network(torch.randn(1, 1, 16, 16)).isfinite().all()  # a batch of one image, in training mode


def test_training_it(interrupted, first: str, tmp_path: Path) -> None:
    """The second stage, interrupted and whole; what comes of it needs the first no more."""
    parts = images()
    config = TrainConfig(epochs=3, lr=0.05, save_every_steps=2)
    network = collaborating(first)
    fresh = deepcopy(network.state_dict())

    def fit(out: str) -> None:
        objective, rule = PowerSqrt(), OneForAll(first)
        offramp.fit(deepcopy(network), objective, parts.train, parts.val, config, out=tmp_path / out, rule=rule)

    calm = interrupted(fit, OneForAll, "step", 6)
    lines = calm.read_metrics()
    assert lines[-1].loss < lines[0].loss
    Path(first).rename(tmp_path / "gone")
    trained = load(calm.path)
    assert [(one["through"], one["run"]) for one in trained.origin.pop("ancestors")] == [
        ("teacher", "first"),
        ("network", "first"),
    ]
    assert trained.origin == {}
    for name, value in trained.named_parameters():
        assert torch.equal(value, fresh[name]) == (not value.requires_grad), name
    moved = [name for name, value in trained.named_buffers() if not torch.equal(value, fresh[name])]
    assert any(".trunk." in name for name in moved)


def test_an_engine_runs_it(first: str) -> None:
    network = collaborating(first).eval()
    cost = offramp.cost(network)
    assert all(head.operations == 0 for head in cost.heads)
    pixels = torch.randn(20, 1, 16, 16)
    with torch.no_grad():
        logits_KBC = network(pixels)
    confidence_KB = network.class_log_probs(logits_KBC).amax(-1).exp()
    policy = Policy((*(float(row_B.median()) for row_B in confidence_KB[:-1]), EVERYBODY))
    found = agreement(offramp.Engine(network, policy)(pixels), logits_KBC, policy, network.num_classes, 1e-5)
    assert found.images == 20
    assert found.wrong == 0


def test_by_name(first: str) -> None:
    network = backbones.build(
        Spec("collaborating", {"run": first}), num_classes=2, image_shape=(1, 16, 16), damping=True
    )
    trained = load(first).stages[0].state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in network.stages[0].trunk.state_dict().items())
    with pytest.raises(UsageError, match="has 2 classes, the data have 3"):
        backbones.build(Spec("collaborating", {"run": first}), num_classes=3)


def test_exits_without_a_linear_at_their_end_are_refused() -> None:
    base = EarlyExitNet([torch.nn.Identity()], [torch.nn.Linear(3, 2)])
    with pytest.raises(UsageError, match="a Sequential with a Linear at its end; 1 is not"):
        chained(base)


def test_one_exit_is_a_new_linear_alone() -> None:
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    network = chained(EarlyExitNet([torch.nn.Identity()], [head]))
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        "stages.0.linear.weight",
        "stages.0.linear.bias",
    ]
    assert network(torch.randn(4, 3)).shape == (1, 4, 2)
