from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.rules.pseudo_update import next_weights

OPTIMIZERS: dict[str, Any] = {
    "plain": (torch.optim.SGD, {}),
    "published": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-2}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "dampened": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 1e-2}),
}


def gradients_of(weights: list[Tensor]) -> dict[Tensor, Tensor]:
    return {weight: torch.randn_like(weight) for weight in weights}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_it_is_what_the_optimiser_then_does(name: str, steps: int) -> None:
    kind, settings = OPTIMIZERS[name]
    weights = [nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.5}]
    optimizer = kind(groups, lr=0.2, fused=True, **settings)
    for step in range(steps + 1):
        optimizer.param_groups[0]["lr"] = 0.2 / (step + 1)
        gradients = gradients_of(weights)
        kept = [weight.detach().clone() for weight in weights]
        ahead = next_weights(optimizer, gradients)
        assert all(torch.equal(weight, before) for weight, before in zip(weights, kept, strict=True))
        for weight, gradient in gradients.items():
            weight.grad = gradient
        optimizer.step()
        for weight, before in zip(weights, kept, strict=True):
            torch.testing.assert_close(ahead[weight], weight.detach(), rtol=1e-12, atol=1e-12)
            assert not torch.allclose(weight, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_its_derivative_in_the_gradients(name: str, steps: int) -> None:
    kind, settings = OPTIMIZERS[name]
    weight = nn.Parameter(torch.randn(4, dtype=torch.float64))
    optimizer = kind([weight], lr=0.2, fused=True, **settings)
    for _ in range(steps):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    gradient = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: next_weights(optimizer, {weight: g})[weight], [gradient])


def test_a_weight_that_never_had_a_gradient_has_a_finite_derivative() -> None:
    weight = nn.Parameter(torch.randn(2))
    gradient = torch.tensor([0.0, 1.0], requires_grad=True)
    next_weights(torch.optim.AdamW([weight]), {weight: gradient})[weight].sum().backward()
    assert gradient.grad is not None
    assert gradient.grad.isfinite().all()


def test_an_optimiser_it_does_not_know() -> None:
    weight = nn.Parameter(torch.randn(2))
    with pytest.raises(UsageError, match="known for SGD and AdamW, not for RMSprop"):
        next_weights(torch.optim.RMSprop([weight]), gradients_of([weight]))
