"""Plain cross-entropy at every exit: the baseline.

K exits, B images, C outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from offramp.objectives.base import Objective, Terms, log_softmax, pick


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log F[y] at every exit (paper, section 3.1).

    On a network with the damping neuron the softmax runs over all N + 1 outputs: what damping of strength 0 would do.
    """

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """See `Objective.terms`."""
        log_true_KB = pick(log_softmax(logits_KBC), targets_B)
        return Terms(-log_true_KB, {"F_true": log_true_KB.detach().exp()})

    def push(
        self, logits_KBC: Tensor, targets_B: Tensor, stats_KB: Mapping[str, Tensor], *, progress: float = 0.0
    ) -> Tensor:
        """See `Objective.push`: 1 - F[y]."""
        return -pick(log_softmax(logits_KBC), targets_B).expm1()
