"""Cross-entropy without the gradients of samples that are already sure: the paper's study in section 3.2.

K exits, B images, C outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from offramp import processes
from offramp.checks import check_fields, number
from offramp.objectives.base import LATER, Objective, Terms, log_softmax, pick


@dataclass(frozen=True)
class DiscardThreshold(Objective):
    """Cross-entropy that drops a sample at an exit where F[y] exceeds a threshold (paper, section 3.2, Fig. 3).

    Threshold 1 is plain training. Which mean of the losses the paper takes it does not say.

    Args:
        threshold: In (0, 1]. The paper sweeps 0.7 to 1.
        mean: Over the whole "batch": discarding one sample does not enlarge the gradients of the others. Or over those
            that are "kept" at the exit, in the global batch over all processes: the statistic `weight` is how much
            larger they get. An exit that keeps none has the loss 0.
    """

    threshold: Annotated[float, number("in (0, 1]", lambda threshold: 0 < threshold <= 1)] = 0.9
    mean: Literal["batch", "kept"] = field(default="batch", metadata=LATER)

    def __post_init__(self) -> None:
        check_fields(self)

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """See `Objective.terms`."""
        log_true_KB = pick(log_softmax(logits_KBC), targets_B)
        true_KB = log_true_KB.detach().exp()
        discarded_KB = true_KB > self.threshold
        loss_KB = -log_true_KB.masked_fill(discarded_KB, 0.0)
        stats_KB = {"F_true": true_KB, "off_or_reversed": discarded_KB.to(true_KB)}
        if self.mean == "batch":
            return Terms(loss_KB, stats_KB)
        weight_KB = _batch_over_kept(~discarded_KB).to(true_KB).expand_as(true_KB)
        return Terms(weight_KB * loss_KB, {**stats_KB, "weight": weight_KB})

    def push(
        self, logits_KBC: Tensor, targets_B: Tensor, stats_KB: Mapping[str, Tensor], *, progress: float = 0.0
    ) -> Tensor:
        """See `Objective.push`: 1 - F[y], or 0 where the sample is discarded."""
        log_true_KB = pick(log_softmax(logits_KBC), targets_B)
        return -log_true_KB.expm1().masked_fill(log_true_KB.exp() > self.threshold, 0.0)


def _batch_over_kept(kept_KB: Tensor) -> Tensor:
    """The size of the global batch over what each exit keeps of it (over 1 where it keeps nothing), `[K, 1]`."""
    counts = torch.cat([kept_KB.sum(1), kept_KB.new_full((1,), kept_KB.shape[1], dtype=torch.int64)])
    counts = processes.sum_over_all(counts).double()
    return (counts[-1] / counts[:-1].clamp_min(1)).unsqueeze(1)
