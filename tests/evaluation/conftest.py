"""A split in memory and a network of three exits, both tiny; records of random logits."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from offramp.costs import Cost, Count
from offramp.evaluation import Record
from offramp.network import EarlyExitNet


@dataclass(frozen=True)
class Batch:
    images_BCHW: Tensor
    targets_B: Tensor
    indices_B: Tensor


@dataclass(frozen=True)
class InMemory:
    """What evaluation reads of a split; indices start at 100, so that positions and indices cannot be confused."""

    images: Tensor
    targets: Tensor
    num_classes: int = 4
    batch_size: int = 5
    name: str = "made-up/test"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"class {n}" for n in range(self.num_classes))

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return f"{self.images.double().sum().item()} {self.targets.tolist()}"

    def batches(self, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        for first in range(start * self.batch_size, len(self.images), self.batch_size):
            here = slice(first, first + self.batch_size)
            yield Batch(self.images[here], self.targets[here], torch.arange(len(self.images))[here] + 100)


@pytest.fixture
def split() -> InMemory:
    return InMemory(torch.randn(17, 1, 4, 4), torch.arange(17) % 4)


@pytest.fixture
def network() -> EarlyExitNet:
    """Three exits, batch norm (so that modes show), a damping neuron; in training mode but for one frozen layer."""
    stages = [
        nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for channels in (1, 4, 4)
    ]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(64, 5)) for _ in stages]
    network = EarlyExitNet(stages, exits, damping=True)
    network.stages[0][1].eval()
    return network


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(K: int = 3, S: int = 400, N: int = 12, damping: bool = True, scale: float = 3.0) -> Record:
        return Record(
            logits_KSC=scale * torch.randn(K, S, N + damping),
            targets_S=torch.randint(0, N, (S,)),
            indices_S=torch.arange(S),
            class_names=tuple(f"class {n}" for n in range(N)),
            split="made-up/test",
            fingerprint="f",
            weights="w",
            total=S,
            made_on="cpu",
        )

    return make


@pytest.fixture
def read_together(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many logits of an exit are looked at together."""
    return lambda logits: monkeypatch.setattr(sys.modules[Record.__module__], "PIECE", logits)


@pytest.fixture
def make_cost() -> Callable[..., Cost]:
    """The cost of a network whose exits take so many operations, heads on the way included."""

    def make(*operations: int) -> Cost:
        counts = tuple(Count(count, count, 1) for count in operations)
        return Cost(counts, counts, counts, counts, (1, 4, 4))

    return make
