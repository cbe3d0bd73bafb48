"""What PCGrad and CAGrad have in common: one gradient for each exit, and who gets what of them."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.data import Batch
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, Objective, PowerSqrt, dynamic
from offramp.rules import CAGrad, Outcome, PCGrad, Standard, TrainingRule, Workbench


class Weighted(TrainingRule):
    """Weights that are known beforehand."""

    def __init__(self, *weights: float) -> None:
        self.known = weights

    def step(self, batch: Batch, progress: float) -> Outcome:
        return self.bench.descend(batch, progress, combine=self.weights)

    def weights(self, gramian_KK: Tensor) -> Tensor:
        self.gramian_KK = gramian_KK
        return torch.tensor(self.known, dtype=torch.float64)


@pytest.mark.parametrize("objective", [CrossEntropy(), PowerSqrt(), dynamic(), dynamic(over="batch")])
def test_shared_parameters_get_the_weighted_sum_and_others_their_own(
    network: EarlyExitNet, batch: Batch, objective: Objective, step_of: Any, singles: Any
) -> None:
    rule = Weighted(2.0, -1.0, 0.5, 3.0)
    found = step_of(rule, network, objective, batch)
    single = singles(network, objective, batch)
    num_own = 0
    for name, gradient in found.items():
        own = [g[name] for g in single if g[name] is not None]
        if len(own) == 1:
            num_own += 1
            wanted = own[0]
        else:
            wanted = sum(w * g[name] for w, g in zip(rule.known, single, strict=True) if g[name] is not None)
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-13)
    last = sum(1 for name in found if name.startswith(("stages.3.", "exits.")))
    assert last <= num_own < len(found)
    shared = [name for name in found if sum(g[name] is not None for g in single) > 1]
    for k, j in [(0, 0), (0, 3), (2, 1)]:
        pairs = [(single[k][name], single[j][name]) for name in shared]
        product = sum((a * b).sum() for a, b in pairs if a is not None and b is not None)
        torch.testing.assert_close(rule.gramian_KK[k, j], product, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_weights_of_one_are_plain_training(
    network: EarlyExitNet, batch: Batch, with_gradient: bool, step_of: Any
) -> None:
    objective = dynamic(with_gradient=with_gradient)
    found = step_of(Weighted(1, 1, 1, 1), network, objective, batch)
    torch.testing.assert_close(found, step_of(Standard(), network, objective, batch), rtol=1e-9, atol=1e-13)


class Blown(TrainingRule):
    """Must not be asked."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        return self.bench.descend(batch, progress, combine=self.weights)

    def weights(self, gramian_KK: Tensor) -> Tensor:
        raise AssertionError("asked")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e25])
def test_inner_products_that_are_not_finite_never_reach_the_weights(scale: float) -> None:
    network = EarlyExitNet([nn.Linear(4, 4), nn.Linear(4, 4)], [nn.Linear(4, 3), nn.Linear(4, 3)])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    rule = Blown()
    rule.prepare(Workbench(network=network, forward=network, objective=CrossEntropy(), optimizer=optimizer))
    images = torch.randn(2, 4) * scale  # of the last, the gradients are finite, and their squares are not
    rule.step(Batch(images, torch.tensor([0, 1]), torch.arange(2), 2), 0.0)
    assert rule.bench.broken
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gradients_that_are_all_zero_are_left_so() -> None:
    network = EarlyExitNet([nn.Linear(4, 4), nn.Linear(4, 4)], [nn.Linear(4, 3), nn.Linear(4, 3)])
    for head in network.exits:
        nn.init.zeros_(head.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    before = network.stages[0].weight.clone()
    rule = Blown()
    rule.prepare(Workbench(network=network, forward=network, objective=CrossEntropy(), optimizer=optimizer))
    rule.step(Batch(torch.randn(2, 4), torch.tensor([0, 1]), torch.arange(2), 2), 0.0)
    assert not rule.bench.broken
    assert torch.equal(network.stages[0].weight, before)


@pytest.mark.parametrize("rule", [PCGrad, CAGrad])
def test_without_torchjd_the_way_out_is_named(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(UsageError, match=r"pip install 'offramp\[gradient-surgery\]'"):
        rule()
