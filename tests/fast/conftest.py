"""Checks that a plan is what the module is, and a form its network; small networks for it."""

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.fast import Compiled, Kernels, Library, Merged
from offramp.fast.plan import Plan
from offramp.network import EarlyExitNet

Same = Callable[..., Plan]
has_compiler = shutil.which("c++") is not None or shutil.which("g++") is not None
needs_compiler = pytest.mark.skipif(not has_compiler, reason="no C++ compiler here")


@pytest.fixture(params=[Library, pytest.param(Compiled, marks=needs_compiler)])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Both kinds."""
    made: Kernels = request.param()
    return made


def _gradients(outputs: Sequence[Tensor], wanted: Sequence[Tensor], of: Sequence[int]) -> list[Tensor | None]:
    torch.manual_seed(1)
    given = [torch.randn(out.shape, dtype=out.dtype) for out in outputs]
    some = [outputs[i] for i in of if outputs[i].requires_grad]
    if not some:
        return [None] * len(wanted)
    return list(
        torch.autograd.grad(
            some, wanted, [given[i] for i in of if outputs[i].requires_grad], allow_unused=True, retain_graph=True
        )
    )


def _tuple(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


@pytest.fixture
def same() -> Same:
    """`same(part, *maps)` compares a plan with the module: values, each output's gradients, what the norms keep."""

    def check(part: nn.Module, *maps: Tensor, kernels: Kernels | None = None, plan: Plan | None = None) -> Plan:
        part.train()
        twin = deepcopy(part)
        plan = plan or Plan(part, maps)
        ours, theirs = ([x.clone().requires_grad_(x.is_floating_point()) for x in maps] for _ in range(2))
        torch.manual_seed(0)
        found = plan(ours, kernels or Library())
        torch.manual_seed(0)
        wanted = _tuple(twin(*theirs))
        assert plan.gives_tuple == isinstance(wanted, tuple) or len(wanted) == 1
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(dict(part.named_buffers()), dict(twin.named_buffers()))
        for of in [[i] for i in range(len(wanted))] + [[*range(len(wanted))]]:
            sides = []
            for outputs, inputs, module in ((found, ours, part), (wanted, theirs, twin)):
                leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
                sides.append(_gradients(outputs, leaves, of))
            for one, other in zip(*sides, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    torch.testing.assert_close(one, other)
        return plan

    return check


def _unit(inputs: int, outputs: int, size: int = 1, **settings: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, "bias": False} | settings)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(_unit(channels, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class _Fork(nn.Module):
    """Gives two maps, of which the exit reads the last; both are units of the same map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = _unit(3, 4), _unit(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


class _Meeting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = _unit(8, 3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y, self.unit(torch.cat([x, y], 1))], 1)


def _small(*stages: nn.Module, exits: list[nn.Module] | None = None) -> EarlyExitNet:
    network = EarlyExitNet(stages or [_Fork(), _Meeting()], exits or [_head(4), _head(7)], num_classes=2)
    return network.double()


def _images(batch: int = 4, side: int = 6) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64)


def _equal(form: Merged, x: Tensor, twin: EarlyExitNet, **tolerance: float) -> None:
    """The form and the same network of modules: logits, gradients, what norms keep."""
    network = form.network
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(0)
    found = form(ours)
    torch.manual_seed(0)
    wanted = twin(theirs)
    torch.testing.assert_close(found, wanted, **tolerance)
    weights = torch.randn(found.shape)
    for module, logits in ((network, found), (twin, wanted)):
        module.zero_grad()
        (logits * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)
    for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, **tolerance)
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()), **tolerance)


def _both(network: EarlyExitNet) -> tuple[Merged, EarlyExitNet]:
    return Merged(network), deepcopy(network)


class _Given(nn.Module):
    """Gives what a function makes of its unit's map."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.unit, self.make = _unit(3, 3), make
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def forward(self, *maps: Any) -> Any:
        return self.make(self, *maps)


@pytest.fixture
def unit() -> Callable[..., Any]:
    """`unit(inputs, outputs, size=1, **settings)`: convolution, batch norm, ReLU."""
    return _unit


@pytest.fixture
def head() -> Callable[..., Any]:
    """`head(channels)`: an exit."""
    return _head


@pytest.fixture
def small() -> Callable[..., Any]:
    """`small(*stages, exits=None)`: a network in float64, by default of two stages."""
    return _small


@pytest.fixture
def images() -> Callable[..., Any]:
    """`images(batch=4, side=6)`."""
    return _images


@pytest.fixture
def equal() -> Callable[..., Any]:
    """`equal(form, x, twin)`: see `_equal`."""
    return _equal


@pytest.fixture
def both() -> Callable[..., Any]:
    """`both(network)`: its form, and a copy of it."""
    return _both


@pytest.fixture
def given() -> type[nn.Module]:
    """`given(make)`: a module that gives what `make(module, *maps)` does; it has a unit and a counter."""
    return _Given
