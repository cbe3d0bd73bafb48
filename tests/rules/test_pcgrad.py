from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, Objective, dynamic
from offramp.rules import PCGrad, Standard


def by_the_book(rows_KP: Tensor, orders: list[list[int]]) -> tuple[Tensor, int]:
    """Algorithm 1 on the vectors themselves, and how often it projected."""
    total_P, projections = torch.zeros_like(rows_KP[0]), 0
    for k, order in enumerate(orders):
        d_P = rows_KP[k].clone()
        for j in order:
            if j != k and d_P @ rows_KP[j] < 0:
                d_P -= (d_P @ rows_KP[j]) / (rows_KP[j] @ rows_KP[j]) * rows_KP[j]
                projections += 1
        total_P += d_P
    return total_P, projections


def test_two_gradients_in_the_plane() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    weights = PCGrad().weights(rows @ rows.T)
    torch.testing.assert_close(weights @ rows, torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_weights_are_those_of_the_algorithm_on_vectors() -> None:
    projected = 0
    for seed in range(20):
        torch.manual_seed(seed)
        rows_KP = torch.randn(5, 7, dtype=torch.float64)
        torch.manual_seed(seed)
        orders = [torch.randperm(5).tolist() for _ in range(5)]
        wanted_P, projections = by_the_book(rows_KP, orders)
        projected += projections
        torch.manual_seed(seed)
        torch.testing.assert_close(PCGrad().weights(rows_KP @ rows_KP.T) @ rows_KP, wanted_P)
    assert projected > 100


def test_the_order_is_random_and_matters() -> None:
    torch.manual_seed(3)
    rows_KP = torch.randn(5, 4, dtype=torch.float64)
    updates = {tuple((PCGrad().weights(rows_KP @ rows_KP.T) @ rows_KP).tolist()) for _ in range(20)}
    assert len(updates) > 1


@pytest.mark.parametrize("objective", [CrossEntropy(), dynamic()])
def test_a_step_is_the_algorithm_on_the_gradients_of_the_exits(
    network: EarlyExitNet, batch: Batch, objective: Objective, step_of: Any, singles: Any
) -> None:
    # Two exits that want opposite things: a fresh network may have no conflicts.
    with torch.no_grad():
        network.exits[1][-1].weight.copy_(-network.exits[0][-1].weight)
    single = singles(network, objective, batch)
    shared = [name for name in single[0] if sum(gradients[name] is not None for gradients in single) > 1]
    zeros = {name: torch.zeros_like(p).flatten() for name, p in network.named_parameters()}
    rows_KP = torch.stack([torch.cat([zeros[n] if g[n] is None else g[n].flatten() for n in shared]) for g in single])
    rows_KP = rows_KP.detach()
    torch.manual_seed(5)
    wanted_P, projections = by_the_book(rows_KP, [torch.randperm(4).tolist() for _ in range(4)])
    assert projections > 0
    torch.manual_seed(5)
    found = step_of(PCGrad(), network, objective, batch)
    found_P = torch.cat([found[name].flatten() for name in shared])
    torch.testing.assert_close(found_P, wanted_P, rtol=1e-9, atol=1e-13)
    standard = step_of(Standard(), network, objective, batch)
    assert not torch.allclose(found_P, torch.cat([standard[name].flatten() for name in shared]), rtol=1e-3)
    for name in standard.keys() - set(shared):
        torch.testing.assert_close(found[name], standard[name], rtol=1e-9, atol=1e-13)
