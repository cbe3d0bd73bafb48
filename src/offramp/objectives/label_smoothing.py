"""Label smoothing at every exit: the comparison of the paper's Table 8.

K exits, B images, N classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from offramp.checks import check_fields, number
from offramp.objectives.base import Objective, Terms, log_softmax, pick


@dataclass(frozen=True)
class LabelSmoothing(Objective):
    """Cross-entropy against (1 - s) onehot(y) + s/N, the same s at every exit (Szegedy et al. 2016; paper, Table 8).

    For networks without the damping neuron: the smooth target has N entries.

    Args:
        smoothing: s, in [0, 1). The paper gives no value.
    """

    damping_neuron = "refused"

    smoothing: Annotated[float, number("in [0, 1)", lambda s: 0 <= s < 1)] = 0.1

    def __post_init__(self) -> None:
        check_fields(self)

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """See `Objective.terms`. The gradient on the true class is off or reversed where F[y] reaches its target."""
        s, num_classes = self.smoothing, logits_KBC.shape[-1]
        log_probs_KBN = log_softmax(logits_KBC)
        log_true_KB = pick(log_probs_KBN, targets_B)
        true_KB = log_true_KB.detach().exp()
        reached_KB = true_KB >= 1 - s + s / num_classes
        return Terms(
            -(1 - s) * log_true_KB - s * log_probs_KBN.mean(-1),
            {"F_true": true_KB, "off_or_reversed": reached_KB.to(true_KB)},
        )

    def push(
        self, logits_KBC: Tensor, targets_B: Tensor, stats_KB: Mapping[str, Tensor], *, progress: float = 0.0
    ) -> Tensor:
        """See `Objective.push`: the target of F[y], less F[y]."""
        missing_KB = -pick(log_softmax(logits_KBC), targets_B).expm1()
        return missing_KB - self.smoothing * (1 - 1 / logits_KBC.shape[-1])
