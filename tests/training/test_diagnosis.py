from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, Objective, Terms
from offramp.rules import Workbench
from offramp.training.diagnosis import diagnose, not_finite


@dataclass(frozen=True)
class Broken(Objective):
    """Cross-entropy plus `value` at exit 1 (from 0) for the samples 2 and 3."""

    value: float

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        loss_KB = CrossEntropy().terms(logits_KBC, targets_B).loss_KB
        added_KB = torch.zeros_like(loss_KB)
        added_KB[1, 2:4] = self.value
        return Terms(loss_KB + added_KB, {})


def bench(objective: Objective) -> Workbench:
    network = EarlyExitNet([nn.Linear(3, 3), nn.Linear(3, 3)], [nn.Linear(3, 2), nn.Linear(3, 2)])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    return Workbench(network=network, forward=network, objective=objective, optimizer=optimizer)


def batch(images: Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.long), 100 + torch.arange(len(images)), len(images))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_is_traced_to_exit_and_images(value: float) -> None:
    told = diagnose(bench(Broken(value)), batch(torch.randn(6, 3)), 0.0)
    assert told == "exit 2, images 102, 103: the loss is not finite"


def test_pixels_come_first() -> None:
    images = torch.randn(30, 3)
    images[1:] = float("nan")
    told = diagnose(bench(CrossEntropy()), batch(images), 0.0)
    assert told.startswith("the pixels of images 101, 102,")
    assert "and 19 more" in told


def test_weights_that_are_broken_show_at_the_first_exit_behind_them() -> None:
    tried = bench(CrossEntropy())
    with torch.no_grad():
        tried.network.stages[1].weight[0, 0] = float("nan")
    assert diagnose(tried, batch(torch.randn(2, 3)), 0.0) == "exit 2, images 100, 101: the loss is not finite"


def test_the_network_itself_is_asked_as_some_forms_go_backward_but_once() -> None:
    tried = bench(Broken(float("nan")))
    tried.forward = lambda images: pytest.fail("a form was asked")
    assert diagnose(tried, batch(torch.randn(6, 3)), 0.0) == "exit 2, images 102, 103: the loss is not finite"


def test_nothing_wrong_is_said_too() -> None:
    assert "finite one by one" in diagnose(bench(CrossEntropy()), batch(torch.randn(4, 3)), 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_number_among_many_is_found(value: float, dtype: torch.dtype) -> None:
    tensors = {"steps": torch.tensor(3), "empty": torch.zeros(0), "large": torch.full((50,), 3e38)}
    assert not_finite(tensors) is None
    assert not_finite({**tensors, "w": torch.zeros(3, 40, dtype=dtype).index_fill(1, torch.tensor(7), value)}) == "w"
    assert not_finite({}) is None
