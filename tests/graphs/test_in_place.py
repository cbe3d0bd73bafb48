"""What is on the list of what changes tensors in place, held against what torch does."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from offramp.graphs.in_place import changes_in_place, makes_own, may_write


def into(x: Tensor) -> Tensor:
    return torch.relu(torch.add(x, 1, out=x))


STEPS: list[Callable[[Tensor], Tensor]] = [
    into,
    lambda x: x.relu_(),
    lambda x: torch.relu_(x),
    lambda x: F.relu(x, True),
    lambda x: F.relu(x, inplace=True),
    lambda x: F.relu(x),
    lambda x: x + 1,
    lambda x: x.view(-1),
    lambda x: x.clone(),
    lambda x: torch.cat((x, x)),
]


@pytest.mark.parametrize("step", STEPS)
def test_steps_are_listed_if_they_write_into_their_input_and_makers_share_no_memory(step: Any) -> None:
    x = torch.randn(3, 4)
    before = x._version
    result = step(x)
    nodes = [node for node in fx.symbolic_trace(step).graph.nodes if node.op.startswith("call")]
    assert any(map(changes_in_place, nodes)) is (x._version > before)
    if makes_own(nodes[-1]):
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize(("target", "rest"), [(operator.iadd, (1.0,)), (operator.setitem, (0, 1.0))])
def test_operators_that_write(target: Any, rest: tuple[Any, ...]) -> None:
    """Other graphs than traced ones hold them: a stand-in of torch.fx adds where code says `+=`."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert changes_in_place(graph.call_function(target, (x, *rest)))
    assert not changes_in_place(graph.call_function(operator.add, (x, 1.0)))


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "writes"),
    [
        (nn.ReLU(inplace=True), True),
        (nn.ReLU(), False),
        (Unknown(), True),  # nothing says that it does not
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), False),  # into what the Linear made
        (nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), True),  # into a view
    ],
)
def test_what_a_module_may_write_into_its_input(module: nn.Module, writes: bool) -> None:
    assert may_write(module) is writes
    x = torch.randn(3, 4)
    before = x._version
    with torch.no_grad():
        module(x)
    assert writes or x._version == before
