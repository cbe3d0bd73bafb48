"""Dynamic weights of the exits: how much each exit's loss counts for a sample, read off the damping neuron.

K exits, B images. R1 to R4 and W1, W3, W4 label the readings of what the paper leaves open; R1 and W4 are the defaults.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from offramp import processes
from offramp.checks import check_fields, number, shown
from offramp.config import Spec, build
from offramp.errors import UsageError

Normalisation: TypeAlias = Literal["max", "min-max", "tanh", "centre", "centre-clipped"]
Range: TypeAlias = Literal["exits", "batch"]
Target: TypeAlias = Literal["gradient", "cross-entropy", "root"]


@dataclass(frozen=True, kw_only=True)
class DynamicWeights:
    """Weights w = 1 + w~ from a = -log F[N+1], in [1 - alpha, 1 + alpha] but under "centre" (paper, section 3.5).

    An exit whose damping neuron is smaller than the others' gets the larger weight. With one exit every weight is 1.
    The paper does not give the normalisation of a to w~, nor over what it runs, nor how weights act on power-sqrt's one
    term for all exits; each open point is a field.

    Args:
        alpha: Largest distance of a weight from 1 (under "centre" a factor), in [0, 1]. Paper: 0.8 on CIFAR, 0.3 on
            ImageNet.
        normalisation: From a to w~, with c = a - mean a:
            "max": alpha c / max |c| (R1): mean 1, and one weight always at a bound;
            "min-max": a mapped linearly from [min a, max a] to [-alpha, alpha] (R2): always uses both bounds;
            "tanh": alpha tanh(c) (R3): small differences give small weights;
            "centre": alpha c (R4): what Han et al. (2022), whom the paper follows, do to their network's outputs. Those
                lie between -1 and 1, a does not: weights leave the range that the paper prints, and may be negative;
            "centre-clipped": alpha c, cut off at -alpha and alpha: R4 within that range, its mean no longer quite 1.
        over: What mean, max and min run over: "exits" (of each sample: no sample sees another) or "batch" (all exits
            and samples of the global batch, over all processes).
        applied_to: What the weights multiply:
            "gradient": an exit's whole gradient, cross-entropy and damping alike (W4): the propositions keep holding;
            "cross-entropy": the cross-entropy alone (W1): exits of small weight are damped more;
            "root": the cross-entropy, and a inside power-sqrt's root (W3): exits of large weight are damped more.
        reverse: Weights 2 - w: the exit with the larger damping neuron counts more.
        with_gradient: Let gradients flow through the weights, normalisation included (paper, Table 5, last row).
    """

    alpha: Annotated[float, number("in [0, 1]", lambda alpha: 0 <= alpha <= 1)] = 0.8
    normalisation: Normalisation = "max"
    over: Range = "exits"
    applied_to: Target = "gradient"
    reverse: bool = False
    with_gradient: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def weights(self, a_KB: Tensor) -> Tensor:
        """The weight `[K, B]` of each exit for each sample, a constant unless `with_gradient`."""
        if not self.with_gradient:
            a_KB = a_KB.detach()
        if len(a_KB) == 1:
            return torch.ones_like(a_KB)
        mean, low, high = _over_batch(a_KB, self.with_gradient) if self.over == "batch" else _over_exits(a_KB)
        # Exits that agree up to rounding all weigh 1. Dividing by infinity rather than masking the quotient: its
        # gradient is 0, not nan.
        tiny = 32 * torch.finfo(a_KB.dtype).eps * mean
        if self.normalisation == "max":
            farthest = torch.maximum(high - mean, mean - low)
            shift_KB = (a_KB - mean) / farthest.masked_fill(farthest <= tiny, math.inf)
        elif self.normalisation == "min-max":
            half, middle = (high - low) / 2, (high + low) / 2
            shift_KB = (a_KB - middle) / half.masked_fill(half <= tiny, math.inf)
        elif self.normalisation == "tanh":
            shift_KB = (a_KB - mean).tanh()
        elif self.normalisation == "centre":
            shift_KB = a_KB - mean
        else:
            shift_KB = (a_KB - mean).clamp(-1, 1)
        return 1 + (-self.alpha if self.reverse else self.alpha) * shift_KB


def _over_exits(a_KB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, minimum and maximum over the exits of each sample, each `[B]`."""
    low_B, high_B = a_KB.aminmax(dim=0)
    return a_KB.mean(0), low_B, high_B


def _over_batch(a_KB: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, minimum and maximum over all exits and samples of the global batch, scalars.

    `with_gradient` they carry one, which sums over one process let through and sums over several do not.
    """
    if with_gradient and processes.active():
        raise UsageError(
            "Weights over the batch that carry a gradient work in one process only; use over='exits', or one process."
        )
    count = a_KB.new_full((), a_KB.numel())
    total, count = processes.sum_over_all(torch.stack([a_KB.sum(), count]))
    if a_KB.numel():
        low, high = a_KB.aminmax()
        extremes = torch.stack([high, -low])
    else:  # this process has no image of the batch, but the others wait for it
        extremes = a_KB.new_full((2,), -math.inf)
    high, minus_low = processes.max_over_all(extremes)
    return total / count, -minus_low, high


Weighting: TypeAlias = DynamicWeights | Mapping[str, Any] | None


def as_weighting(value: Weighting) -> DynamicWeights | None:
    """The same, or what a run's folder says of it: a mapping of its fields."""
    if isinstance(value, Mapping):
        weights: DynamicWeights = build(Spec("dynamic", value), {"dynamic": DynamicWeights}, "weighting")
        return weights
    if value is None or isinstance(value, DynamicWeights):
        return value
    raise UsageError(
        f"weighting must be DynamicWeights(...) or None, not {shown(value)}; the objective dynamic is power-sqrt under "
        "dynamic weights, and with form=damping it is damping under them."
    )
