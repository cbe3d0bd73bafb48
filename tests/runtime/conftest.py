"""Small networks whose exits disagree, and one whose exits give logits that were handed in."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.backbones import msdnet, ranet
from offramp.network import EarlyExitNet, last_linear
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where onnxruntime's files are kept: made once for all tests here, because it takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _kept_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


class _First(nn.Sequential):
    """A bare tensor with a map."""


class _Second(nn.Module):
    """A map and a vector, from a map."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.unit(x)
        return x, x.mean((2, 3))


class _Third(nn.Module):
    """A vector and a map: the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8))
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(v).relu(), self.unit(x)


class _Fourth(nn.Module):
    """A bare vector."""

    def forward(self, v: Tensor, x: Tensor) -> Tensor:
        return torch.cat([v, x.mean((2, 3))], 1)


def _by_hand() -> EarlyExitNet:
    stem = _First(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    pooled = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)) for _ in range(2)]
    heads = [pooled[0], nn.Linear(8, 5), pooled[1], nn.Linear(16, 5)]
    return EarlyExitNet([stem, _Second(), _Third(), _Fourth()], heads, reads=(0, 1, -1, 0), image_shape=(3, 8, 8))


def _untrained(name: str, damping: bool = False, **more: Any) -> EarlyExitNet:
    knobs: dict[str, Any] = {"num_classes": 5, "damping": damping, "image_size": 16, "head_channels": 8, "channels": 4}
    knobs |= more
    if name == "msdnet":
        return msdnet(exits=3, base=1, growth=4, growth_factors=(1, 2), **knobs)
    if name == "ranet":
        return ranet(scales=(1, 2), growth_factors=(2, 1), growth=4, step=1, **knobs)
    return _by_hand()


def _settled(name: str, damping: bool, more: dict[str, Any]) -> EarlyExitNet:
    torch.manual_seed(1)
    network = _untrained(name, damping, **more).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.momentum = 1.0
    with torch.no_grad():
        network(images(network, 200))
        logits_KBC = network.eval()(images(network, 200))
        for logits_BC, head in zip(logits_KBC, network.exits, strict=True):
            linear = last_linear(head)
            scale = 1.5 / logits_BC.std(0).mean()
            linear.weight *= scale
            linear.bias *= scale
    return network


@pytest.fixture(scope="session")
def small() -> Callable[..., EarlyExitNet]:
    """A function from `msdnet`, `ranet` or `by hand` to a network with running statistics and confidences that vary.

    It takes knobs of the former two. Each is made once; what is given is a copy.
    """
    made: dict[str, EarlyExitNet] = {}

    def build(name: str = "msdnet", *, damping: bool = False, **more: Any) -> EarlyExitNet:
        key = repr((name, damping, more))
        if key not in made:
            made[key] = _settled(name, damping, more)
        return copy.deepcopy(made[key])

    return build


def images(network: EarlyExitNet, num_images: int, seed: int = 0) -> Tensor:
    """Images whose brightness and contrast vary, so that answers do."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, *network.image_shape)
    contrast_B = torch.rand(num_images, 1, 1, 1, generator=generator) * 2
    tint_BC = torch.randn(num_images, shape[1], 1, 1, generator=generator)
    return torch.randn(shape, generator=generator) * contrast_B + tint_BC


@pytest.fixture
def images_of() -> Callable[..., Tensor]:
    """A function from a network and a number to images for it."""
    return images


class Carry(nn.Module):
    """A stage that passes everything on."""

    def forward(self, recorded_BKC: Tensor) -> Tensor:
        return recorded_BKC


class Pick(nn.Module):
    """An exit whose logits are the k-th of those handed in."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, recorded_BKC: Tensor) -> Tensor:
        return recorded_BKC[:, self.k]


@pytest.fixture(scope="session")
def recorded() -> Callable[[int, int], EarlyExitNet]:
    """A function from K and N to a network whose images `[B, K, C]` are the logits of its exits: nothing is rounded."""
    return lambda num_exits, num_classes: EarlyExitNet(
        [Carry() for _ in range(num_exits)], [Pick(k) for k in range(num_exits)], num_classes=num_classes
    )


@pytest.fixture
def leaving() -> Callable[..., Policy]:
    """A function to the policy under which given shares of those that reach each exit leave there."""

    def policy(logits_KBC: Tensor, num_classes: int, shares: Sequence[float], measure: Measure | None = None) -> Policy:
        measure = measure or Measure()
        confidence_KB, _ = measure.over(logits_KBC, num_classes)
        here_B = torch.ones(logits_KBC.shape[1], dtype=torch.bool)
        thresholds = []
        for share, confidence_B in zip(shares, confidence_KB[:-1], strict=False):
            values = confidence_B[here_B].sort(descending=True).values
            count = round(share * len(values))
            if count == 0:
                threshold = NOBODY
            elif count == len(values):
                threshold = EVERYBODY
            else:
                threshold = float(values[count - 1 : count + 1].mean())
            thresholds.append(threshold)
            here_B &= ~(confidence_B >= threshold)
        return Policy((*thresholds, EVERYBODY), measure)

    return policy


@pytest.fixture
def counted() -> Callable[[EarlyExitNet], dict[str, list[int]]]:
    """A function that hangs counters on a network: rows run through each stage and each exit, in engines made later."""

    def hang(network: EarlyExitNet) -> dict[str, list[int]]:
        counts = {"stages": [0] * network.num_exits, "exits": [0] * network.num_exits}
        for kind, rows_K in counts.items():
            for k, module in enumerate(getattr(network, kind)):

                def note(module: nn.Module, args: tuple[Tensor, ...], rows_K: list[int] = rows_K, k: int = k) -> None:
                    rows_K[k] += len(args[0])

                module.register_forward_pre_hook(note)
        return counts

    return hang
