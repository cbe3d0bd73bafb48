"""Tiny networks trained on the digits, one of them by hand with a carry that changes, and their parts, made once."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from offramp import data
from offramp.backbones import msdnet, ranet
from offramp.export.graph import Parts
from offramp.export.tracing import parts
from offramp.network import EarlyExitNet

KNOBS = {"num_classes": 10, "in_channels": 1, "image_size": 16, "head_channels": 8, "channels": 4}


@pytest.fixture(scope="session", autouse=True)
def _quicker(operators_once: None) -> None:
    """All tests here export."""


class _Second(nn.Module):
    """A vector from a map, and the map as it came in."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x


class _Third(nn.Module):
    """A bare map, from a vector nobody needs and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, v: Tensor, x: Tensor) -> Tensor:
        return self.unit(x)


def _by_hand(damping: bool) -> EarlyExitNet:
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
    pooled = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10 + damping)) for _ in range(2)]
    return EarlyExitNet(
        [stem, _Second(), _Third()],
        [pooled[0], nn.Linear(4, 10 + damping), pooled[1]],
        reads=(0, 0, -1),
        damping=damping,
        image_shape=(1, 16, 16),
    )


def _untrained(name: str, damping: bool) -> EarlyExitNet:
    if name == "msdnet":
        return msdnet(exits=3, base=1, growth=4, step_mode="even", growth_factors=(1, 2), damping=damping, **KNOBS)
    if name == "ranet":
        return ranet(
            blocks=2,
            block_step=1,
            scales=(1, 2),
            growth_factors=(2, 1),
            growth=4,
            step=1,
            step_mode="even",
            damping=damping,
            **KNOBS,
        )
    return _by_hand(damping)


def _train(network: EarlyExitNet, steps: int) -> None:
    """Few steps: exits know something then, and not the same."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    train = data.digits(batch_size=32).train
    epochs = (train.batches(epoch=epoch) for epoch in itertools.count())
    for batch in itertools.islice(itertools.chain.from_iterable(epochs), steps):
        logits_KBC = network(batch.images_BCHW)
        loss = sum(nn.functional.cross_entropy(logits_BC, batch.targets_B) for logits_BC in logits_KBC)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@dataclass(frozen=True)
class Trained:
    """A network, its parts, and what it makes of all test images."""

    network: EarlyExitNet
    parts: Parts
    images_SCHW: Tensor
    logits_KSC: Tensor


@pytest.fixture(scope="session")
def trained() -> Callable[..., Trained]:
    """A function from `msdnet`, `ranet` or `by hand`, with the damping neuron or without, to a trained network."""
    made: dict[tuple[str, bool], Trained] = {}

    def get(name: str = "msdnet", damping: bool = True) -> Trained:
        if (name, damping) not in made:
            torch.manual_seed(0)
            network = _untrained(name, damping).train()
            _train(network, steps=100 if name == "by hand" else 32)
            images_SCHW = torch.cat([batch.images_BCHW for batch in data.digits(batch_size=256).test.batches()])
            with torch.no_grad():
                made[name, damping] = Trained(network.eval(), parts(network), images_SCHW, network(images_SCHW))
        return made[name, damping]

    return get
