"""CAGrad (Liu et al., NeurIPS 2021): of all updates near the mean gradient, the one that helps the worst exit most.

K exits.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from offramp.batch import Batch
from offramp.checks import SIZE, check_fields
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.surgery import weighting


@dataclass(eq=False)
class CAGrad(TrainingRule):
    """K times the update d that maximises min_k g_k d subject to |d - g_0| <= c |g_0|, g_0 the mean of the g_k.

    d = g_0 + c |g_0| / |g_w| g_w, where g_w, the sum of w_k g_k, minimises g_w g_0 + c |g_0| |g_w| over w of at least 0
    that sum to 1. d has the size of a mean and the loss is a sum over exits, hence the factor K: with c = 0 this is
    plain training. Where g_w vanishes (|g_w| below 1e-4 of the length of all g_k together), as with an exit whose g_k
    is 0, the formula says nothing: d is g_0 for c < 1, and else 0, which is then the best.

    Args:
        c: How far from the mean gradient the update may go, of at least 0.
        rescale: Divide d by 1 + c², as the public implementations do.
    """

    needs_plain = True

    c: Annotated[float, SIZE] = 0.5
    rescale: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        self._weighting = weighting("CAGradWeighting", c=float(self.c))

    def step(self, batch: Batch, progress: float) -> Outcome:
        """A step with a backward pass for each exit."""
        return self.bench.descend(batch, progress, combine=self.weights)

    def weights(self, gramian_KK: Tensor) -> Tensor:
        """K d as weights of the g_k."""
        K = len(gramian_KK)
        # Of length 1: torchjd takes short gradients, whatever their directions, for vanishing ones.
        weights_K = self._weighting(gramian_KK / gramian_KK.trace())
        if self.c < 1 and not weights_K.any():  # torchjd's answer to a g_w that vanishes
            weights_K = torch.full_like(weights_K, 1 / K)
        return K * weights_K / (1 + self.c**2 if self.rescale else 1)
