"""Checks that a plan is what the module is."""

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from offramp.fast import Compiled, Kernels, Library
from offramp.fast.plan import Plan

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
