"""Gradient equilibrium (Li et al., ICCV 2019): no map gets larger gradients for having more exits behind it.

K exits.
"""

from typing import Any

import torch
from torch import Tensor

from offramp.batch import Batch
from offramp.network import Carry
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.linked import exchanged


class GradientEquilibrium(TrainingRule):
    """The gradients that reach the map of an exit are averaged with fixed weights.

    Through the map that exit k reads (k from 1), the trunk gets (g_head + (K - k) g_deeper) / (K - k + 1): g_head from
    the head of exit k, g_deeper from whatever reads the map later. At the last exit the factor is 1.

    A fault of the authors' program that is not repeated here: of this first stage of IMTA it keeps the epoch with the
    lowest test accuracy, because the comparison was written for errors. The second stage starts from that.
    """

    def step(self, batch: Batch, progress: float) -> Outcome:
        """A step under the link."""
        return self.bench.descend(batch, progress, link=self.link)

    def link(self, k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
        """The map, whose gradients are rescaled before the fork and on the way on."""
        deeper = K - 1 - k
        x = _rescaled(carry[reads], 1 / (deeper + 1))
        return x, exchanged(carry, reads, _rescaled(x, deeper))


def _rescaled(x: Tensor, factor: float) -> Tensor:
    """`x`, with its gradient multiplied by `factor`."""
    rescaled: Tensor = _Rescaled.apply(x, factor)  # type: ignore[no-untyped-call]
    return rescaled


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
