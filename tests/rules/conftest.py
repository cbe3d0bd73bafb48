"""Small networks of both families, and what a step's gradients should be, computed stage by stage."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offramp import data
from offramp.backbones import msdnet, ranet
from offramp.data import Batch, Parts
from offramp.network import EarlyExitNet
from offramp.objectives import Objective
from offramp.rules import TrainingRule, Workbench

Mix = Callable[[int, int, Tensor, Tensor], Tensor]
"""From (k from 1, K, gradient of the head, gradient from deeper) to the gradient of the map that exit k reads."""
Gradients = dict[str, Tensor]
Step = Callable[..., Gradients]
Textbook = Callable[[EarlyExitNet, Objective, Batch, Mix], Gradients]
Singles = Callable[[EarlyExitNet, Objective, Batch], list[dict[str, Tensor | None]]]


def small_msdnet(damping: bool = False) -> EarlyExitNet:
    return msdnet(
        exits=4, num_classes=5, damping=damping, base=1, step=1, step_mode="even", channels=4, growth=2,
        growth_factors=(1, 2), bottleneck_factors=(1, 2), head_channels=8, image_size=16, in_channels=1,
    )  # fmt: skip


def small_ranet(damping: bool = False) -> EarlyExitNet:
    return ranet(
        num_classes=5, damping=damping, scales=(1, 2), blocks=2, block_step=2, growth_factors=(2, 1), channels=4,
        growth=4, step=1, head_channels=8, image_size=16, in_channels=1,
    )  # fmt: skip


FAMILIES = {"msdnet": small_msdnet, "ranet": small_ranet}


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> EarlyExitNet:
    """With the damping neuron, in float64 and training mode."""
    return FAMILIES[request.param](damping=True).double()


@pytest.fixture
def batch() -> Batch:
    """Seven images of 16 x 16 pixels."""
    images = torch.randn(7, 1, 16, 16, dtype=torch.float64)
    return Batch(images, torch.arange(7) % 5, torch.arange(7), 7)


@pytest.fixture
def step_of() -> Step:
    """`step_of(rule, network, objective, batch)` gives the gradients of one step on a copy; none is zero."""

    def gradients(rule: TrainingRule, network: EarlyExitNet, objective: Objective, batch: Batch) -> Gradients:
        network = deepcopy(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
        rule.prepare(Workbench(network=network, forward=network, objective=objective, optimizer=optimizer))
        rule.step(batch, 0.0)
        return _named(network, [p.grad for p in network.parameters()])

    return gradients


@pytest.fixture
def textbook() -> Textbook:
    """Backpropagation by hand, from the last stage to the first, each stage cut out of the network."""

    def gradients(network: EarlyExitNet, objective: Objective, batch: Batch, mix: Mix) -> Gradients:
        network = deepcopy(network)
        K, carry = network.num_exits, (batch.images_BCHW,)
        inputs, outputs, seen, logits = [], [], [], []
        for k in range(K):
            inputs.append(tuple(x.detach().requires_grad_() for x in carry))
            outputs.append(carry := network.run_stage(k, inputs[k]))
            seen.append(carry[network.reads[k]].detach().requires_grad_())
            logits.append(network.exits[k](seen[k]))
        loss = objective(torch.stack(logits), batch.targets_B)
        heads = torch.autograd.grad(loss, seen, retain_graph=True)
        found = dict(
            zip(network.exits.parameters(), torch.autograd.grad(loss, [*network.exits.parameters()]), strict=True)
        )
        later = [torch.zeros_like(x) for x in outputs[-1]]
        for k in reversed(range(K)):
            i = network.reads[k]
            later[i] = heads[k] if k == K - 1 else mix(k + 1, K, heads[k], later[i])
            wanted = [*network.stages[k].parameters(), *inputs[k]]
            got = torch.autograd.grad(outputs[k], wanted, later, allow_unused=True)
            got = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, got, strict=True)]
            num = len(wanted) - len(inputs[k])
            found |= zip(wanted[:num], got[:num], strict=True)
            later = got[num:]
        return _named(network, [found[p] for p in network.parameters()])

    return gradients


@pytest.fixture
def singles() -> Singles:
    """For each exit the gradient of its own loss, by a plain backward pass; None where it reaches no parameter."""

    def gradients(network: EarlyExitNet, objective: Objective, batch: Batch) -> list[dict[str, Tensor | None]]:
        network = deepcopy(network)
        names, parameters = zip(*network.named_parameters(), strict=True)
        loss_KB = objective.terms(network(batch.images_BCHW), batch.targets_B).loss_KB
        found = []
        for loss_B, logits_BC in zip(loss_KB, network.exit_logits(batch.images_BCHW), strict=True):
            reached = torch.autograd.grad(logits_BC.sum(), parameters, retain_graph=True, allow_unused=True)
            own = torch.autograd.grad(loss_B.mean(), parameters, retain_graph=True)
            found.append({n: None if r is None else g for n, r, g in zip(names, reached, own, strict=True)})
        return found

    return gradients


def _named(network: EarlyExitNet, gradients: list[Tensor | None]) -> Gradients:
    pairs = zip(network.named_parameters(), gradients, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def two_brightnesses() -> Parts:
    """Two classes told apart by brightness, 8 x 8 pixels; the last batch has two images."""
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).integers(0, 100, (60, 1, 8, 8))
    pixels = (noise + 150 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return data.arrays(pixels, labels, batch_size=16, holdout=10)


def three_blocks(num_exits: int = 3, damping: bool = True) -> EarlyExitNet:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for c in (1, 4, 4)]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(4 * side**2, 2 + damping)) for side in (6, 4, 2)]
    return EarlyExitNet(stages[:num_exits], exits[:num_exits], damping=damping)


@pytest.fixture
def images() -> Callable[[], Parts]:
    """Makes small data for whole runs."""
    return two_brightnesses


@pytest.fixture
def network_of() -> Callable[..., EarlyExitNet]:
    """Makes a small network for these data, always with the same weights."""
    return three_blocks
