"""Cross-entropy without the gradients of samples that are already sure: the paper's study in section 3.2.

K exits, B images, C outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from offramp.objectives.base import Objective, Terms, check_number, log_softmax, pick


@dataclass(frozen=True)
class DiscardThreshold(Objective):
    """Cross-entropy that drops a sample at an exit where F[y] exceeds a threshold (paper, section 3.2, Fig. 3).

    The mean still divides by the whole batch: discarding one sample must not enlarge the gradients of the others, and
    threshold 1 is plain training. (The paper does not say which mean.)

    Args:
        threshold: In (0, 1]. The paper sweeps 0.7 to 1.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, "in (0, 1]", lambda threshold: 0 < threshold <= 1)

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """See `Objective.terms`."""
        log_true_KB = pick(log_softmax(logits_KBC), targets_B)
        true_KB = log_true_KB.detach().exp()
        discarded_KB = true_KB > self.threshold
        return Terms(
            -log_true_KB.masked_fill(discarded_KB, 0.0),
            {"F_true": true_KB, "off_or_reversed": discarded_KB.to(true_KB)},
        )

    def push(
        self, logits_KBC: Tensor, targets_B: Tensor, stats_KB: Mapping[str, Tensor], *, progress: float = 0.0
    ) -> Tensor:
        """See `Objective.push`: 1 - F[y], or 0 where the sample is discarded."""
        log_true_KB = pick(log_softmax(logits_KBC), targets_B)
        return -log_true_KB.expm1().masked_fill(log_true_KB.exp() > self.threshold, 0.0)
