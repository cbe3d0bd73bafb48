from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.data import Batch
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, dynamic
from offramp.rules import DFS, Standard, Workbench


def mix_of(ratio: float, head: str) -> Any:
    """The rule of the published program in terms of masks over channels."""

    def mix(k: int, K: int, from_head: Tensor, deeper: Tensor) -> Tensor:
        C = deeper.shape[1]
        first = (torch.arange(C) < round(ratio * C)).double().view(1, C, 1, 1)
        if ratio == 1:
            return deeper
        return deeper * first + (from_head if head == "all" else from_head * (1 - first))

    return mix


@pytest.mark.parametrize("head", ["all", "rest"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_gradients_are_those_of_a_sweep_by_hand(
    network: EarlyExitNet, batch: Batch, ratio: float, head: str, step_of: Any, textbook: Any
) -> None:
    wanted = textbook(network, dynamic(), batch, mix_of(ratio, head))
    found = step_of(DFS(ratio=ratio, head=head), network, dynamic(), batch)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    plain = step_of(Standard(), network, dynamic(), batch)
    stem = next(iter(plain))
    assert not torch.allclose(found[stem], plain[stem], rtol=1e-3)


def parted(ratio: float, head: str) -> tuple[Tensor, Tensor]:
    """Which of ten channels the head and the rest of the network send gradients to."""
    x = torch.randn(2, 10, 3, 3, requires_grad=True)
    other = torch.randn(2, 4)
    seen, (passed, onward) = DFS(ratio=ratio, head=head).link(0, 3, (other, x), -1)
    assert passed is other
    assert torch.equal(seen, x)
    assert torch.equal(onward, x)
    reached = []
    for side in (seen, onward):
        (gradient,) = torch.autograd.grad(side.sum(), x, allow_unused=True) if side.requires_grad else (None,)
        reached.append(torch.zeros(10) if gradient is None else gradient[0, :, 0, 0])
    return reached[0], reached[1]


@pytest.mark.parametrize(
    ("ratio", "head", "from_head", "from_deeper"),
    [
        (0.3, "all", "1111111111", "1110000000"),
        (0.3, "rest", "0001111111", "1110000000"),
        (0.25, "rest", "0011111111", "1100000000"),  # half a channel rounds to the even number, as in the program
        (0.0, "all", "1111111111", "0000000000"),
        (0.0, "rest", "1111111111", "0000000000"),
        (1.0, "all", "0000000000", "1111111111"),
        (1.0, "rest", "0000000000", "1111111111"),
    ],
)
def test_which_channels_get_gradients_from_where(ratio: float, head: str, from_head: str, from_deeper: str) -> None:
    found = ["".join(str(int(value)) for value in side) for side in parted(ratio, head)]
    assert found == [from_head, from_deeper]


def test_maps_without_pixels_are_parted_as_well() -> None:
    network = EarlyExitNet([nn.Linear(6, 4), nn.Linear(4, 4)], [nn.Linear(4, 3), nn.Linear(4, 3)])
    network.link = DFS(ratio=0.5, head="rest").link
    network(torch.randn(5, 6))[1].sum().backward()
    reached = network.stages[0].weight.grad.abs().sum(1) > 0
    assert reached.tolist() == [True, True, False, False]


def features(network: EarlyExitNet, rule: DFS) -> list[Tensor]:
    """What the last Linear of each exit sees in a step."""
    seen: list[Tensor] = []
    for head in network.exits:
        head[-1].register_forward_hook(lambda linear, args, out: seen.append(args[0]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, fused=True)
    rule.prepare(Workbench(network=network, forward=network, objective=CrossEntropy(), optimizer=optimizer))
    rule.step(Batch(torch.randn(500, 6), torch.zeros(500, dtype=torch.long), torch.arange(500), 500), 0.0)
    return seen


def test_dropout_is_before_the_last_linear_of_every_exit_and_only_in_steps() -> None:
    exits = [nn.Sequential(nn.Sigmoid(), nn.Linear(4, 3)) for _ in range(2)]
    network = EarlyExitNet([nn.Linear(6, 4), nn.Linear(4, 4)], exits)
    for dropped in features(network, DFS(dropout=0.5)):
        assert (dropped == 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    images = torch.randn(5, 6)
    assert torch.equal(network.train()(images), network.eval()(images))


def test_an_exit_without_a_linear_takes_no_dropout() -> None:
    network = EarlyExitNet([nn.Identity()] * 2, [nn.Linear(4, 3), nn.Identity()])
    DFS().check(network)
    with pytest.raises(UsageError, match=r"dropout=0\.5 .* exit 2 has none; use dropout=0"):
        DFS(dropout=0.5).check(network)
