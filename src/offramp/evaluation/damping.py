"""What the damping neuron says about a data set: its softmax F[N+1], and a = -log F[N+1] (paper, Eq. 1 and 3).

S images, N classes, C = N + 1 outputs, the last of which is the damping neuron. Two numbers go by "value of the damping
neuron" in the paper: the probability F[N+1] (Table 5) and a, in nats (Eq. 3 to 5). They are kept apart here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.evaluation.record import pieces

DECADES = 6  # the histogram spans 1e-6 to 1; smaller values go to the first bin
BINS_PER_DECADE = 8
EDGES = tuple(10.0 ** (b / BINS_PER_DECADE - DECADES) for b in range(DECADES * BINS_PER_DECADE + 1))


@dataclass(frozen=True)
class DampingFigures:
    """The damping neuron of one exit over a data set.

    Attributes:
        mean: Mean of F[N+1], a probability (paper, Table 5).
        a: Mean of -log F[N+1], in nats.
        wins: Percentage of images on which the neuron would have won an argmax over all outputs (reading A9(c)); no
            accuracy of ours lets it.
        histogram: Images per bin of F[N+1] between `EDGES`.
    """

    mean: float
    a: float
    wins: float
    histogram: tuple[int, ...]


def damping_figures(logits_SC: Tensor, num_classes: int) -> DampingFigures:
    """The figures of one exit's logits `[S, N + 1]`."""
    neuron_S, largest_S, total_S = logits_SC[:, num_classes], *torch.empty(2, len(logits_SC), dtype=logits_SC.dtype)
    for here in pieces(*logits_SC.shape):
        largest_S[here], total_S[here] = logits_SC[here, :num_classes].amax(-1), logits_SC[here].logsumexp(-1)
    log_share_S = (neuron_S - total_S).double().clamp(max=0.0)
    bin_S = ((log_share_S / math.log(10) + DECADES) * BINS_PER_DECADE).floor().long()
    histogram = bin_S.clamp(0, len(EDGES) - 2).bincount(minlength=len(EDGES) - 1)
    return DampingFigures(
        mean=log_share_S.exp().mean().item(),
        a=-log_share_S.mean().item(),
        wins=100 * (neuron_S > largest_S).double().mean().item(),
        histogram=tuple(histogram.tolist()),
    )
