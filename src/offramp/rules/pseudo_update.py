"""An optimiser's next step as a function of the gradients, for methods that learn by looking one step ahead."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from offramp.errors import UsageError

State = Mapping[str, Any]  # what the optimiser remembers of one weight, and the settings of its group


def next_weights(optimizer: torch.optim.Optimizer, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """What the next step of `optimizer` would make of each weight, with these gradients (weight to gradient).

    Its current learning rate, weight decay and memory count; nothing is changed. The result is differentiable in the
    gradients, the weights and the memory being constants.
    """
    step = step_of(optimizer)
    groups = {weight: group for group in optimizer.param_groups for weight in group["params"]}
    return {
        weight: step(weight.detach(), gradient, optimizer.state.get(weight, {}), groups[weight])
        for weight, gradient in gradients.items()
    }


def step_of(optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor, State, State], Tensor]:
    """How `optimizer` makes one weight of (weight, gradient, memory, settings); SGD and AdamW alone are known."""
    for kind, step in ((torch.optim.SGD, _sgd), (torch.optim.AdamW, _adamw)):
        if isinstance(optimizer, kind):
            return step
    raise UsageError(
        f"Looking one step ahead is known for SGD and AdamW, not for {type(optimizer).__name__}; use one of them."
    )


def _sgd(weight: Tensor, gradient: Tensor, memory: State, settings: State) -> Tensor:
    velocity, momentum = memory.get("momentum_buffer"), settings["momentum"]
    decayed = gradient + settings["weight_decay"] * weight
    update = decayed
    if velocity is not None:
        update = momentum * velocity + (1 - settings["dampening"]) * decayed
    if settings["nesterov"]:
        update = decayed + momentum * update
    ahead: Tensor = weight - settings["lr"] * update
    return ahead


def _adamw(weight: Tensor, gradient: Tensor, memory: State, settings: State) -> Tensor:
    (beta1, beta2), rate = settings["betas"], settings["lr"]
    steps = memory["step"].double() + 1 if memory else 1
    mean = beta1 * memory.get("exp_avg", 0) + (1 - beta1) * gradient
    square = beta2 * memory.get("exp_avg_sq", 0) + (1 - beta2) * gradient.square()
    # A gradient that has always been 0 would have the derivative 0 times infinity.
    root = (square / (1 - beta2**steps)).clamp_min(torch.finfo(square.dtype).tiny).sqrt()
    decayed = weight * (1 - rate * settings["weight_decay"])
    ahead: Tensor = decayed - rate * (mean / (1 - beta1**steps)) / (root + settings["eps"])
    return ahead
