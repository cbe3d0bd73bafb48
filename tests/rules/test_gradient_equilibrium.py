from typing import Any

import torch

from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import dynamic
from offramp.rules import GradientEquilibrium


def test_gradients_are_those_of_a_sweep_by_hand(
    network: EarlyExitNet, batch: Batch, step_of: Any, textbook: Any
) -> None:
    found = step_of(GradientEquilibrium(), network, dynamic(), batch)
    wanted = textbook(network, dynamic(), batch, lambda k, K, head, deeper: (head + (K - k) * deeper) / (K - k + 1))
    plain = textbook(network, dynamic(), batch, lambda k, K, head, deeper: head + deeper)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    heads = {name for name in plain if name.startswith("exits.")}
    last = {name for name in plain if name.startswith(f"stages.{network.num_exits - 1}.")}
    same = {name for name in plain if torch.allclose(found[name], plain[name], rtol=1e-9, atol=1e-14)}
    assert heads | last <= same
    assert len(same) < len(plain)


def test_the_weights_of_head_and_deeper_exits_add_up_to_one() -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn(2, 5)
    for k in range(4):
        seen, (onward, passed) = GradientEquilibrium().link(k, 5, (x, other), 0)
        assert passed is other
        assert torch.equal(seen, x)
        assert torch.equal(onward, x)
        head, deeper = (torch.autograd.grad(side.sum(), x, retain_graph=True)[0] for side in (seen, onward))
        torch.testing.assert_close(head, torch.full_like(x, 1 / (5 - k)))
        torch.testing.assert_close(deeper, torch.full_like(x, (4 - k) / (5 - k)))
