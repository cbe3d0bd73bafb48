"""What is a unit, a join and a slice, and what only looks like one."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offramp.drawing import Drawn
from offramp.fast.tracing import Traced, UntraceableError


class Part(nn.Module):
    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.other = nn.BatchNorm2d(4)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def traced(forward: Callable[..., Any], change: Callable[[Part], Any] = lambda part: None) -> Traced:
    part = Part(forward)
    change(part)
    return Traced(part, [torch.randn(3, 4, 5, 6)])


def usual(p: Any, x: Tensor) -> Tensor:
    result: Tensor = p.relu(p.norm(p.conv(x)))
    return result


UNITS: dict[str, Callable[..., Any]] = {
    "modules": usual,
    "function": lambda p, x: nn.functional.relu(p.norm(p.conv(x))),
    "function in place": lambda p, x: nn.functional.relu(p.norm(p.conv(x)), inplace=True),
    "torch": lambda p, x: torch.relu(p.norm(p.conv(x))),
    "method": lambda p, x: p.norm(p.conv(x)).relu(),
    "method in place": lambda p, x: p.norm(p.conv(x)).relu_(),
    "behind another operation": lambda p, x: p.relu(p.norm(p.conv(x * 2))),
}
NONE: dict[str, Callable[..., Any]] = {
    "convolution read twice": lambda p, x: (lambda z: p.relu(p.norm(z)) + z)(p.conv(x)),
    "norm read twice": lambda p, x: (lambda n: torch.relu(n) + n)(p.norm(p.conv(x))),
    "norm is an output": lambda p, x: (lambda n: (torch.relu(n), n))(p.norm(p.conv(x))),
    "norm called twice": lambda p, x: p.relu(p.norm(p.conv(x))) + p.norm(x),
    "another activation": lambda p, x: nn.functional.leaky_relu(p.norm(p.conv(x))),
    "ReLU first": lambda p, x: p.norm(p.relu(p.conv(x))),
    "no norm": lambda p, x: p.relu(p.conv(x)),
    "an addition between": lambda p, x: p.relu(p.norm(p.conv(x) + 1)),
}
CHANGES: dict[str, Callable[[Part], Any]] = {
    "a norm in evaluation": lambda p: p.norm.eval(),
    "no gain": lambda p: setattr(p, "norm", nn.BatchNorm2d(4, affine=False)),
    "no averages": lambda p: setattr(p, "norm", nn.BatchNorm2d(4, track_running_stats=False)),
    "mean of all": lambda p: setattr(p, "norm", nn.BatchNorm2d(4, momentum=None)),
    "another norm": lambda p: setattr(p, "norm", nn.GroupNorm(2, 4)),
    "padding by name": lambda p: setattr(p, "conv", nn.Conv2d(4, 4, 3, padding="same")),
    "padding by reflection": lambda p: setattr(p, "conv", nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "parametrized": lambda p: nn.utils.parametrizations.weight_norm(p.conv),
    "forward replaced": lambda p: setattr(p.conv, "forward", lambda x: x * 2),
    "norm's forward replaced": lambda p: setattr(p.norm, "forward", lambda x: x * 2),
}


@pytest.mark.parametrize("name", UNITS)
def test_units_are_found(name: str) -> None:
    (unit,) = traced(UNITS[name]).units()
    assert (type(unit.conv), type(unit.norm)) == (nn.Conv2d, nn.BatchNorm2d)


@pytest.mark.parametrize("name", NONE)
def test_what_others_read_is_no_unit(name: str) -> None:
    assert not list(traced(NONE[name]).units())


@pytest.mark.parametrize("name", CHANGES)
def test_what_works_otherwise_is_no_unit(name: str) -> None:
    assert not list(traced(usual, CHANGES[name]).units())


SLICES: dict[str, tuple[Callable[..., Any], tuple[int, int] | None]] = {
    "channels": (lambda x: x[:, 1:3], (1, 2)),
    "from the end": (lambda x: x[:, -3:], (1, 3)),
    "up to the end": (lambda x: x[:, 2:99], (2, 2)),
    "all": (lambda x: x[:, :], (0, 4)),
    "with all others": (lambda x: x[:, :2, :, :], (0, 2)),
    "with dots": (lambda x: x[:, :2, ...], (0, 2)),
    "width": (lambda x: x[..., 1:3], None),
    "height": (lambda x: x[..., 1:3, :], None),
    "images": (lambda x: x[0:3, 1:3], None),
    "none": (lambda x: x[:, 3:1], None),
    "each second": (lambda x: x[:, ::2], None),
    "a list": (lambda x: x[:, [0, 1]], None),
    "one": (lambda x: x[:, 1], None),
    "a new axis": (lambda x: x[:, 1:3, None, :, 0], None),
    "also of the height": (lambda x: x[:, 1:3, 1:], None),
    "by the size": (lambda x: x[:, : x.size(0)], None),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_of_channels(name: str) -> None:
    cut, wanted = SLICES[name]
    found = traced(lambda p, x: cut(usual(p, x)))
    (node,) = found.outputs
    given = found.cut(node)
    assert (given and given[1:]) == wanted


JOINS: dict[str, tuple[Callable[..., Any], int | None]] = {
    "usual": (lambda x: torch.cat([x, x], 1), 2),
    "tuple": (lambda x: torch.cat((x, x, x), dim=1), 3),
    "from the end": (lambda x: torch.concat([x], dim=-3), 1),
    "keywords": (lambda x: torch.cat(tensors=[x, x], dim=1), 2),
    "axis": (lambda x: torch.concatenate([x, x], axis=1), 2),
    "images": (lambda x: torch.cat([x, x]), None),
    "width": (lambda x: torch.cat([x, x], -1), None),
    "into another": (lambda x: torch.cat([x, x], 1, out=torch.empty(0)), None),
    "no maps": (lambda x: torch.cat([x.flatten(2), x.flatten(2)], 1), None),
    "a stack": (lambda x: torch.stack([x, x], 1), None),
    "with something else": (lambda x: torch.cat([x, x.new_zeros(1, 4, 1, 1).expand_as(x)[:, :0]], 1), None),
}


@pytest.mark.parametrize("name", JOINS)
def test_joins_of_maps(name: str) -> None:
    join, wanted = JOINS[name]
    found = traced(lambda p, x: join(usual(p, x)))
    given = found.joined(found.outputs[0])
    assert (given and len(given)) == wanted


def test_what_code_draws_while_it_is_tried_leaves_no_trace() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random() * float(np.random.random()) * torch.rand(1)

    maps, before = torch.randn(3, 4, 5, 6), Drawn()
    with pytest.raises(UntraceableError, match="it draws random numbers in Python"):
        Traced(Drawing(), [maps])
    assert before.is_still_so()
