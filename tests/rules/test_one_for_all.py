"""Distillation from a trained last exit, against plain loops."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.config import TrainConfig
from offramp.data import Batch
from offramp.errors import OfframpError, UsageError
from offramp.files import load
from offramp.network import EarlyExitNet, builder
from offramp.objectives import CrossEntropy, Objective, PowerSqrt, dynamic
from offramp.rules import GradientEquilibrium, OneForAll, Standard, Workbench, build


@builder
def small(num_exits: int = 3, damping: bool = True, classes: int = 2, seed: int = 0) -> EarlyExitNet:
    torch.manual_seed(seed)
    stages = [nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for c in (1, 4, 4)]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(4 * side**2, classes + damping)) for side in (6, 4, 2)]
    return EarlyExitNet(stages[:num_exits], exits[:num_exits], damping=damping)


@pytest.fixture
def teacher(images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a network that was trained by gradient equilibrium."""
    monkeypatch.setattr(
        "offramp.files.network.rebuild", lambda spec: small(**spec.args)
    )  # this file is no importable module
    config = TrainConfig(epochs=2, lr=0.05)
    out = tmp_path / "teacher"
    offramp.fit(small(seed=7), PowerSqrt(), images().train, config=config, out=out, rule=GradientEquilibrium())
    return str(out)


def by_the_book(logits_KBC: Tensor, taught_BC: Tensor, loss_KB: Tensor, rule: OneForAll) -> Tensor:
    K, B, C = logits_KBC.shape
    T, total = rule.temperature, torch.zeros((), dtype=torch.float64)
    for b in range(B):
        teacher = [math.exp(taught_BC[b, c].item() / T) for c in range(C)]
        p = [value / sum(teacher) for value in teacher]
        for k in range(K):
            if k == K - 1:
                total = total + loss_KB[k, b]
                continue
            q = [(logits_KBC[k, b, c] / T).exp() for c in range(C)]
            kl = sum(p[c] * (math.log(p[c]) - (q[c] / sum(q)).log()) for c in range(C))
            kl = kl / C if rule.reduction == "outputs" else kl
            total = total + (1 - rule.share) * loss_KB[k, b] + rule.share * T**2 * kl
    return total / B


@pytest.mark.parametrize("settings", [{}, {"share": 0.9, "temperature": 3.0}, {"reduction": "outputs"}])
@pytest.mark.parametrize("objective", [CrossEntropy(), dynamic()])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_is_that_of_the_description(
    teacher: str, settings: dict[str, Any], objective: Objective, compiled: bool
) -> None:
    network = small().double().train()
    own, rule = deepcopy(network), OneForAll(teacher, **settings)
    forward = torch.compile(network, dynamic=False, backend="aot_eager") if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, fused=True)
    rule.prepare(Workbench(network=network, forward=forward, objective=objective, optimizer=optimizer))
    pixels = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    targets_B = torch.tensor([0, 1] * 3)
    outcome = rule.step(Batch(pixels, targets_B, torch.arange(6), 6), 0.0)
    logits_KBC = own(pixels)
    taught_BC = load(teacher).double()(pixels)[-1]
    loss = by_the_book(logits_KBC, taught_BC, objective.terms(logits_KBC, targets_B).loss_KB, rule)
    loss.backward()
    torch.testing.assert_close(outcome.loss, loss.detach())
    for found, wanted in zip(network.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-8, atol=1e-13)
    assert outcome.stats_KB["distillation"][-1].eq(0).all()
    assert outcome.stats_KB["distillation"][:-1].gt(0).all()


def test_a_run_of_before_there_were_two_reductions_is_described_as_it_was() -> None:
    assert OneForAll("t").settings() == {"teacher": "t", "share": 0.1, "temperature": 1.0}
    assert OneForAll("t", reduction="outputs").settings()["reduction"] == "outputs"


def test_an_interrupted_run_ends_with_the_same_bytes(images, interrupted, tmp_path: Path, teacher: str) -> None:
    parts = images()
    config = TrainConfig(epochs=3, lr=0.02, save_every_steps=2)
    before = (Path(teacher) / "weights.safetensors").read_bytes()

    def fit(out: str) -> None:
        rule = OneForAll(teacher, share=0.5)
        offramp.fit(small(), dynamic(), parts.train, parts.val, config, out=tmp_path / out, rule=rule)

    calm = interrupted(fit, OneForAll, "_ask", 6)
    assert (Path(teacher) / "weights.safetensors").read_bytes() == before
    lines = calm.read_metrics()
    assert lines[-1].loss < lines[0].loss
    described = calm.read_config().rule
    assert build(described).settings() == OneForAll(teacher, share=0.5).settings()


def test_an_exit_that_is_taught_alone_comes_to_answer_like_the_teacher(teacher: str) -> None:
    network, rule = small(seed=3).double(), OneForAll(teacher, share=1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, fused=True)
    rule.prepare(Workbench(network=network, forward=network, objective=dynamic(), optimizer=optimizer))
    batch = Batch(torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1] * 3), torch.arange(6), 6)
    for _ in range(60):
        outcome = rule.step(batch, 0.0)
    taught_BC = load(teacher).double()(batch.images_BCHW)[-1].softmax(-1)
    torch.testing.assert_close(outcome.logits_KBC[0].softmax(-1), taught_BC.detach(), rtol=0, atol=0.03)


def test_another_teacher_is_refused_when_a_run_goes_on(images, tmp_path: Path, teacher: str) -> None:
    state = OneForAll(teacher).state()
    OneForAll(teacher).load_state(state)
    folder = Path(teacher)
    folder.rename(tmp_path / "elsewhere")
    config = TrainConfig(epochs=1, lr=0.05)
    offramp.fit(small(seed=8), PowerSqrt(), images().train, config=config, out=folder)
    with pytest.raises(OfframpError, match="is not the one that the run began with"):
        OneForAll(teacher).load_state(state)


def test_a_teacher_that_answers_something_else_is_refused(images, tmp_path: Path, teacher: str) -> None:
    for network, message in (
        (small(damping=False), "has 1 damping neurons and the network 0"),
        (small(classes=3), "has 2 classes and the network 3"),
    ):
        with pytest.raises(UsageError, match=message):
            OneForAll(teacher).check(network)
    rule = OneForAll(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="is not a run"):
        offramp.fit(small(), PowerSqrt(), images().train, out=tmp_path / "run", rule=rule)
    assert not (tmp_path / "run").exists()


def test_with_one_exit_it_is_plain_training(teacher: str) -> None:
    pixels, after = torch.randn(6, 1, 8, 8), []
    for rule in (OneForAll(teacher, share=0.9), Standard()):
        network = small(1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
        rule.prepare(Workbench(network=network, forward=network, objective=dynamic(), optimizer=optimizer))
        rule.step(Batch(pixels, torch.tensor([0, 1] * 3), torch.arange(6), 6), 0.0)
        after.append(dict(network.named_parameters()))
    torch.testing.assert_close(after[0], after[1])


def test_a_process_without_an_image_takes_part(teacher: str) -> None:
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    rule = OneForAll(teacher)
    rule.prepare(Workbench(network=network, forward=network, objective=dynamic(), optimizer=optimizer))
    images_BCHW, none = torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long)
    outcome = rule.step(Batch(images_BCHW, none, none, 1), 0.0)
    assert outcome.loss == 0
    assert outcome.logits_KBC.shape == (3, 0, 3)
    assert outcome.stats_KB["distillation"].shape == (3, 0)
