from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import dynamic
from offramp.rules import CAGrad, Standard


def by_the_book(rows_KP: Tensor, c: float) -> Tensor:
    """Algorithm 1 with another solver (SLSQP, from several starts) for the dual problem; on the scale of the mean."""
    rows = rows_KP.numpy()
    K = len(rows)
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)

    def dual(w: Any) -> float:
        return float(w @ rows @ mean + radius * np.linalg.norm(w @ rows))

    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    starts = [np.full(K, 1 / K), *(0.9 * np.eye(K) + 0.1 / K)]
    runs = [
        minimize(dual, start, bounds=[(0, 1)] * K, constraints=simplex, options={"ftol": 1e-15, "maxiter": 1000})
        for start in starts
    ]
    w = min(runs, key=lambda run: run.fun).x
    combined = w @ rows
    return torch.from_numpy(mean + radius / np.linalg.norm(combined) * combined)


def update(rule: CAGrad, rows_KP: Tensor) -> Tensor:
    return rule.weights(rows_KP @ rows_KP.T) @ rows_KP


@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_the_algorithm_on_vectors(c: float, seed: int) -> None:
    torch.manual_seed(seed)
    rows_KP = torch.randn(4, 9, dtype=torch.float64) + 0.3
    found_P = update(CAGrad(c=c, rescale=False), rows_KP)
    torch.testing.assert_close(found_P / 4, by_the_book(rows_KP, c), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(update(CAGrad(c=c), rows_KP), found_P / (1 + c**2))


def test_no_other_update_in_the_ball_helps_the_worst_exit_more() -> None:
    rows_KP = torch.randn(3, 4, dtype=torch.float64)
    mean_P = rows_KP.mean(0)
    d_P = update(CAGrad(c=0.5, rescale=False), rows_KP) / 3
    radius = 0.5 * mean_P.norm()
    assert (d_P - mean_P).norm() <= radius * (1 + 1e-6)
    directions = torch.nn.functional.normalize(torch.randn(50000, 4, dtype=torch.float64), dim=1)
    others = mean_P + radius * torch.rand(50000, 1, dtype=torch.float64) ** 0.25 * directions
    gain = (rows_KP @ d_P).min()
    assert gain > (rows_KP @ mean_P).min()
    assert ((others @ rows_KP.T).amin(1) <= gain + 1e-6).all()


def test_two_gradients_in_the_plane() -> None:
    """Mean (0, 1), radius 1/2. By symmetry g_w is the mean too, so d is 1.5 times the mean; K = 2."""
    rows = torch.tensor([[3.0, 1.0], [-3.0, 1.0]], dtype=torch.float64)
    wanted = torch.tensor([0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(update(CAGrad(c=0.5, rescale=False), rows), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(update(CAGrad(c=0.5), rows), wanted / 1.25, rtol=1e-6, atol=1e-6)


def test_short_gradients_are_as_good_as_long_ones() -> None:
    rows_KP = torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(update(CAGrad(), rows_KP * 1e-6), update(CAGrad(), rows_KP) * 1e-6)


def test_opposite_gradients() -> None:
    """On one line, u and -2 u with mean -u/2. With c = 1/2 the best of the ball is -u/4; with c = 2 it is no update."""
    u = torch.tensor([1.0, 2.0], dtype=torch.float64)
    rows = torch.stack([u, -2 * u])
    torch.testing.assert_close(update(CAGrad(c=0.5, rescale=False), rows), -2 * u / 4)
    assert update(CAGrad(c=2.0), rows).tolist() == [0.0, 0.0]


def test_an_exit_without_gradient_does_not_stop_the_others() -> None:
    rows = torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(update(CAGrad(rescale=False), rows), rows.sum(0))


def test_a_step_is_the_algorithm_on_the_gradients_of_the_exits(
    network: EarlyExitNet, batch: Batch, step_of: Any, singles: Any
) -> None:
    objective = dynamic()
    single = singles(network, objective, batch)
    shared = [name for name in single[0] if sum(gradients[name] is not None for gradients in single) > 1]
    zeros = {name: torch.zeros_like(p).flatten() for name, p in network.named_parameters()}
    rows_KP = torch.stack(
        [torch.cat([zeros[n] if g[n] is None else g[n].flatten() for n in shared]) for g in single]
    ).detach()
    found = step_of(CAGrad(c=0.4, rescale=False), network, objective, batch)
    found_P = torch.cat([found[name].flatten() for name in shared])
    wanted_P = 4 * by_the_book(rows_KP, 0.4)
    assert (found_P - wanted_P).norm() < 1e-4 * wanted_P.norm()
    standard = step_of(Standard(), network, objective, batch)
    standard_P = torch.cat([standard[name].flatten() for name in shared])
    assert (found_P - standard_P).norm() > 0.1 * standard_P.norm()
    for name in standard.keys() - set(shared):
        torch.testing.assert_close(found[name], standard[name], rtol=1e-9, atol=1e-13)


def test_without_freedom_it_is_plain_training(network: EarlyExitNet, batch: Batch, step_of: Any) -> None:
    found = step_of(CAGrad(c=0.0), network, dynamic(), batch)
    torch.testing.assert_close(found, step_of(Standard(), network, dynamic(), batch), rtol=1e-9, atol=1e-13)
