"""The damping loss: cross-entropy plus a small pull on the damping neuron at every exit (paper, Eq. 2 and 3).

K exits, B images.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

import torch
from torch import Tensor

from offramp.checks import SIZE, check_fields
from offramp.errors import UsageError
from offramp.objectives.damped import DampedObjective
from offramp.objectives.weighting import DynamicWeights, Weighting, as_weighting


@dataclass(frozen=True)
class Damping(DampedObjective):
    """-log F[y] + lambda (-log F[N+1]) at every exit (paper, Eq. 3).

    Args:
        strength: The paper's lambda, at least 0: one number, or one per exit.
        weighting: Dynamic weights of the exits (paper, section 3.5), as the objective `dynamic` has them; None: all 1.
        per_sqrt_exits: Divide lambda by sqrt(K): the size of damping that power-sqrt has when all exits are alike, a
            control that tells its shape from its size.
    """

    strength: Annotated[float | tuple[float, ...], SIZE] = 0.005
    _: KW_ONLY
    weighting: Weighting = None
    per_sqrt_exits: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.strength, list):  # from JSON
            object.__setattr__(self, "strength", tuple(self.strength))
        check_fields(self)
        object.__setattr__(self, "weighting", as_weighting(self.weighting))
        if isinstance(self.weighting, DynamicWeights) and self.weighting.applied_to == "root":
            raise UsageError("Damping has no root for weights to stand in: applied_to='root' is for PowerSqrt.")

    def damping(self, a_KB: Tensor) -> Tensor:
        """See `DampedObjective.damping`: lambda."""
        num_exits = len(a_KB)
        if isinstance(self.strength, tuple):
            if len(self.strength) != num_exits:
                raise UsageError(
                    f"strength has {len(self.strength)} values for {num_exits} exits: one, or one per exit."
                )
            # Filled on the device: copying a list of numbers there would make the step wait.
            rows = [torch.full_like(a_B, strength) for a_B, strength in zip(a_KB, self.strength, strict=True)]
            lambda_KB = torch.stack(rows)
        else:
            lambda_KB = torch.full_like(a_KB, self.strength)
        return lambda_KB / math.sqrt(num_exits) if self.per_sqrt_exits else lambda_KB
