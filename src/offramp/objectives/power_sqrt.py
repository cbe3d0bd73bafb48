"""The power-sqrt loss: one damping term for all exits (paper, Eq. 4).

K exits, B images.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from offramp import processes
from offramp.checks import SIZE, check_fields
from offramp.errors import UsageError
from offramp.objectives.damped import DampedObjective
from offramp.objectives.weighting import Weighting, as_weighting


@dataclass(frozen=True)
class PowerSqrt(DampedObjective):
    """sum_k -log F_k[y] + lambda sqrt(sum_k a_k^2), with a_k = -log F_k[N+1] (paper, Eq. 4).

    Exit k's share is -log F_k[y] + lambda [a_k / P] a_k, where P is the root and the bracket is a constant: the shares
    sum to Eq. 4 and their gradients are its gradient, the paper's derivation in appendix B.2 (the "- 1" that the main
    text prints under the root does not follow from Eq. 4 and is left out).

    Args:
        strength: The paper's lambda, at least 0.
        weighting: Dynamic weights of the exits (paper, section 3.5), as the objective `dynamic` has them; None: all 1.
        root: Over which values the root is taken: each "sample"'s own, as Eq. 4 says, or the means over the "batch"
            (the global batch, over all processes).
    """

    strength: Annotated[float, SIZE] = 0.005
    _: KW_ONLY
    weighting: Weighting = None
    root: Literal["sample", "batch"] = "sample"

    def __post_init__(self) -> None:
        if isinstance(self.strength, (list, tuple)):
            raise UsageError("Power-sqrt has one strength for all exits (Eq. 4); one per exit is for Damping (Eq. 3).")
        check_fields(self)
        object.__setattr__(self, "weighting", as_weighting(self.weighting))

    def damping(self, a_KB: Tensor) -> Tensor:
        """See `DampedObjective.damping`: lambda a_k / P."""
        num_exits = len(a_KB)
        values_KB = _batch_means(a_KB) if self.root == "batch" else a_KB
        root_B = torch.linalg.vector_norm(values_KB, dim=0)
        # P = 0, where every exit gives the neuron probability 1: any unit vector is a subgradient; take equal shares.
        direction_KB = torch.where(root_B > 0, values_KB / root_B, 1 / math.sqrt(num_exits))
        return (self.strength * direction_KB).expand_as(a_KB)


def _batch_means(a_KB: Tensor) -> Tensor:
    """Each exit's mean over the global batch, `[K, 1]`."""
    count = a_KB.new_full((1,), a_KB.shape[1])
    sums_and_count = processes.sum_over_all(torch.cat([a_KB.sum(1), count]))
    return (sums_and_count[:-1] / sums_and_count[-1]).unsqueeze(1)
