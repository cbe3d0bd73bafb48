"""Gradient surgery: the gradients of the exits are computed one by one, and combined where they may conflict.

K exits, B images here, C outputs, P numbers of shared parameters.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp import processes
from offramp.data import Batch
from offramp.errors import UsageError
from offramp.rules.base import Outcome
from offramp.rules.standard import Standard

Gradients = list[Tensor | None]  # of each parameter; None where an exit does not reach it


class GradientSurgery(Standard):
    """One forward pass, one backward pass for each exit, and one optimiser step with what `weights` makes of them.

    g_k is what reaches the *shared* parameters, those of two or more exits, through the logits of exit k: the gradient
    of that exit's share of the loss. (Dynamic weights that carry a gradient join the exits; then g_k holds what exit
    k's logits do to the shares of the others as well, and the g_k still add up to the whole gradient.) The shared
    parameters get the sum of weight_k g_k. A parameter of one exit alone, of its head or of the last stage, gets its
    plain gradient. An exit that reaches no shared parameter takes no part, and K is the number of those that do.

    Several processes: g_k is that of the whole batch; the first process alone combines, so that all do the same.
    """

    needs_plain = True  # a compiled graph is freed by its first backward pass, and runs through every exit in each

    @abstractmethod
    def weights(self, gramian_KK: Tensor) -> Tensor:
        """The weight `[K]` of each exit's gradient for their inner products (float64, finite, not all 0)."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        """Forward, loss, K backward passes, surgery, update."""
        bench = self.bench
        bench.optimizer.zero_grad()
        logits = self._exit_logits(batch.images_BCHW)
        logits_KBC = torch.stack(logits)
        terms = bench.objective.terms(logits_KBC, batch.targets_B, progress=progress)
        loss = terms.loss_KB.sum() / batch.size
        self._operate(self._gradients(loss, logits))
        bench.update(loss)
        return Outcome(loss.detach(), logits_KBC.detach(), terms.stats_KB)

    def _exit_logits(self, images_BCHW: Tensor) -> list[Tensor]:
        if not len(images_BCHW):
            return list(self._logits(images_BCHW))
        with self.bench.autocast():
            return self.bench.network.exit_logits(images_BCHW)

    def _gradients(self, loss: Tensor, logits: Sequence[Tensor]) -> list[Gradients]:
        """For each exit, the gradient of `loss` through its logits, of each of the bench's parameters."""
        parameters = self.bench.parameters
        found: list[Gradients] = [[None] * len(parameters) for _ in logits]
        reached = [k for k, logits_BC in enumerate(logits) if logits_BC.requires_grad]
        if not loss.requires_grad:
            return found
        signals = torch.autograd.grad(loss, [logits[k] for k in reached])
        for k, signal in zip(reached, signals, strict=True):
            found[k] = list(torch.autograd.grad(logits[k], parameters, signal, retain_graph=True, allow_unused=True))
        return found

    def _operate(self, found: Sequence[Gradients]) -> None:
        """Fill `.grad` with this process's part: of the shared parameters the first process brings all of it."""
        parameters, reach = self.bench.parameters, self._reach(found)
        exits_of = [sum(column) for column in zip(*reach, strict=True)]
        shared = [i for i, num_exits in enumerate(exits_of) if num_exits > 1]
        parts: dict[int, Tensor] = {i: g for gradients in found for i, g in enumerate(gradients) if g is not None}
        if shared:
            rivals = [gradients for gradients, row in zip(found, reach, strict=True) if any(row[i] for i in shared)]
            jacobian_KP = processes.sum_over_all(self._jacobian(rivals, shared))
            combined_P = self._combine(jacobian_KP) if processes.rank() == 0 else torch.zeros_like(jacobian_KP[0])
            parts |= zip(shared, torch.split(combined_P, [parameters[i].numel() for i in shared]), strict=True)
        for i, parameter in enumerate(parameters):
            if exits_of[i]:
                # Copied: a fused step walks memory, so a gradient needs its weight's layout.
                parameter.grad = torch.zeros_like(parameter)
                if i in parts:
                    parameter.grad.copy_(parts[i].view_as(parameter))

    def _reach(self, found: Sequence[Gradients]) -> list[list[bool]]:
        """Whether each exit reaches each parameter, in any process: one without an image of this batch has no say."""
        reach = [[gradient is not None for gradient in gradients] for gradients in found]
        if processes.active():
            reach = (processes.sum_over_all(self.bench.broken.new_tensor(reach)) > 0).tolist()
        return reach

    def _jacobian(self, rivals: Sequence[Gradients], shared: Sequence[int]) -> Tensor:
        sizes = [self.bench.parameters[i].numel() for i in shared]
        jacobian_KP = self.bench.parameters[shared[0]].new_zeros(len(rivals), sum(sizes))
        for row_P, gradients in zip(jacobian_KP, rivals, strict=True):
            for part, i in zip(torch.split(row_P, sizes), shared, strict=True):
                if (gradient := gradients[i]) is not None:
                    part.copy_(gradient.reshape(-1))
        return jacobian_KP

    def _combine(self, jacobian_KP: Tensor) -> Tensor:
        gramian_KK = (jacobian_KP @ jacobian_KP.T).double()
        if not gramian_KK.isfinite().all():  # so that no update comes of it, see Workbench.update
            return jacobian_KP.new_full(jacobian_KP.shape[1:], torch.nan)
        if not gramian_KK.any():
            return jacobian_KP.sum(0)
        return self.weights(gramian_KK).to(jacobian_KP) @ jacobian_KP


def weighting(name: str, **settings: Any) -> Callable[[Tensor], Tensor]:
    """torchjd's function of that name from a Gramian `[K, K]` to weights `[K]`.

    Raises:
        UsageError: If torchjd, or what it needs for this one, is not installed.
    """
    try:
        from torchjd import aggregation

        made: Callable[[Tensor], Tensor] = getattr(aggregation, name)(**settings)
    except ImportError as error:
        raise UsageError(
            "Gradient surgery needs torchjd, which is not all installed: pip install 'offramp[gradient-surgery]'."
        ) from error
    return made
