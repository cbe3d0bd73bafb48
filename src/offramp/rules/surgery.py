"""Gradient surgery: the gradients of the exits are computed one by one, and combined where they may conflict.

K exits, B images here, C outputs, P numbers of shared parameters.

g_k is what reaches the *shared* parameters, those of two or more exits, through the logits of exit k: the gradient of
that exit's share of the loss. (Dynamic weights that carry a gradient join the exits; then g_k holds what exit k's
logits do to the shares of the others as well, and the g_k still add up to the whole gradient.) The shared parameters
get the sum of weight_k g_k. A parameter of one exit alone, of its head or of the last stage, gets its plain gradient.
An exit that reaches no shared parameter takes no part, and K is the number of those that do.

Several processes: g_k is that of the whole batch; the first process alone combines, so that all do the same.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from offramp import processes
from offramp.errors import needs

Gradients: TypeAlias = list[Tensor | None]  # of each parameter; None where an exit does not reach it
Combine: TypeAlias = Callable[[Tensor], Tensor]
"""From the inner products `[K, K]` of the g_k (float64, finite, not all 0) to the weight `[K]` of each."""


def backward(loss: Tensor, logits: Sequence[Tensor], parameters: Sequence[nn.Parameter], combine: Combine) -> None:
    """Fill `.grad` with this process's part: of the shared parameters the first process brings all of it.

    `logits` are those of each exit, `[B, C]`, taken one by one from an ordinary network: a compiled graph is freed by
    its first backward pass, and runs through every exit in each.
    """
    gradients_of = _each(loss, logits, parameters)
    reach = _reach(gradients_of, parameters)
    exits_of = [sum(column) for column in zip(*reach, strict=True)]
    shared = [i for i, num_exits in enumerate(exits_of) if num_exits > 1]
    parts: dict[int, Tensor] = {i: g for gradients in gradients_of for i, g in enumerate(gradients) if g is not None}
    if shared:
        rivals = [gradients for gradients, row in zip(gradients_of, reach, strict=True) if any(row[i] for i in shared)]
        sizes = [parameters[i].numel() for i in shared]
        jacobian_KP = parameters[shared[0]].new_zeros(len(rivals), sum(sizes))
        for row_P, gradients in zip(jacobian_KP, rivals, strict=True):
            for part, i in zip(torch.split(row_P, sizes), shared, strict=True):
                if (gradient := gradients[i]) is not None:
                    part.copy_(gradient.reshape(-1))
        jacobian_KP = processes.sum_over_all(jacobian_KP)
        combined_P = _combined(jacobian_KP, combine) if processes.rank() == 0 else torch.zeros_like(jacobian_KP[0])
        parts |= zip(shared, torch.split(combined_P, sizes), strict=True)
    for i, parameter in enumerate(parameters):
        if exits_of[i]:
            # Copied: a fused step walks memory, so a gradient needs its weight's layout.
            parameter.grad = torch.zeros_like(parameter)
            if i in parts:
                parameter.grad.copy_(parts[i].view_as(parameter))


def _each(loss: Tensor, logits: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Gradients]:
    """For each exit, the gradient of `loss` through its logits, of each of the parameters."""
    gradients_of: list[Gradients] = [[None] * len(parameters) for _ in logits]
    if not loss.requires_grad:
        return gradients_of
    reached = [k for k, logits_BC in enumerate(logits) if logits_BC.requires_grad]
    signals = torch.autograd.grad(loss, [logits[k] for k in reached])
    for k, signal in zip(reached, signals, strict=True):
        gradients = torch.autograd.grad(logits[k], parameters, signal, retain_graph=True, allow_unused=True)
        gradients_of[k] = list(gradients)
    return gradients_of


def _reach(gradients_of: Sequence[Gradients], parameters: Sequence[nn.Parameter]) -> list[list[bool]]:
    """Whether each exit reaches each parameter, in any process: one without an image of this batch has no say."""
    reach = [[gradient is not None for gradient in gradients] for gradients in gradients_of]
    if processes.active():
        numbers = torch.tensor(reach, dtype=torch.float32, device=parameters[0].device)
        reach = (processes.sum_over_all(numbers) > 0).tolist()
    return reach


def _combined(jacobian_KP: Tensor, combine: Combine) -> Tensor:
    gramian_KK = (jacobian_KP @ jacobian_KP.T).double()
    if not gramian_KK.isfinite().all():  # so that no update comes of it, see Workbench.update
        return jacobian_KP.new_full(jacobian_KP.shape[1:], torch.nan)
    if not gramian_KK.any():
        return jacobian_KP.sum(0)
    return combine(gramian_KK).to(jacobian_KP) @ jacobian_KP


def weighting(name: str, **settings: Any) -> Callable[[Tensor], Tensor]:
    """torchjd's function of that name from a Gramian `[K, K]` to weights `[K]`."""
    with needs("torchjd, or what it needs for gradient surgery,", "gradient-surgery"):
        from torchjd import aggregation

        aggregator: Callable[[Tensor], Tensor] = getattr(aggregation, name)(**settings)
    return aggregator
