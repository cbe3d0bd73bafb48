"""A second way to count: hooks on modules, one number per kind of thing, for comparison with the published tables."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from offramp.network import EarlyExitNet


@dataclass(frozen=True)
class Tally:
    """Operations of one image by kind, and parameters."""

    conv: int = 0
    relu: int = 0
    pool: int = 0
    weights: int = 0  # of Linear
    biases: int = 0  # of Linear
    params: int = 0

    @property
    def ops(self) -> int:
        return self.conv + self.relu + self.pool + self.weights + self.biases

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, name) + getattr(other, name) for name in Tally.__dataclass_fields__))


def _of_leaf(module: nn.Module, x: Tensor, out: Tensor) -> Tally:
    params = sum(p.numel() for p in module.parameters())
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return Tally(conv=module.in_channels * kernel * out.numel(), params=params)
    if isinstance(module, nn.ReLU):
        return Tally(relu=x.numel())
    if isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)):
        return Tally(pool=out.numel() * module.kernel_size**2)
    if isinstance(module, nn.Linear):
        return Tally(weights=module.in_features * module.out_features, biases=module.out_features, params=params)
    return Tally(params=params)


Tallies = Callable[[EarlyExitNet], dict[str, Tally]]


@pytest.fixture
def tallies() -> Tallies:
    """A function from a network to the tally of each of its leaf modules, by name."""

    def count(network: EarlyExitNet) -> dict[str, Tally]:
        found: dict[str, Tally] = {}
        hooks = []
        for name, module in network.named_modules():
            if not list(module.children()):

                def note(module: nn.Module, args: tuple[Tensor], out: Tensor, name: str = name) -> None:
                    found[name] = _of_leaf(module, args[0], out)

                hooks.append(module.register_forward_hook(note))
        with torch.no_grad():
            network.eval()(torch.zeros(1, *network.image_shape, device=next(network.parameters()).device))
        for hook in hooks:
            hook.remove()
        return found

    return count
