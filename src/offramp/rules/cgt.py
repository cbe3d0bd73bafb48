"""Confidence-gated training (arXiv 2509.17885): an exit learns little from images that earlier exits have dealt with.

K exits, B images here, N classes, C outputs.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from offramp.batch import Batch
from offramp.checks import ABOVE_0, SHARE, check_fields
from offramp.network import class_log_probs
from offramp.objectives import Terms
from offramp.objectives.base import LATER
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.published import by_depth

_AT_START, _AT_END = (1.0, 0.7, 0.4, 0.1), (0.2, 0.5, 0.8, 1.0)  # lambda, for 4 exits
_THRESHOLDS = {"hard": 0.5, "soft": 0.9}


@dataclass(eq=False)
class CGT(TrainingRule):
    """The share of each exit and sample in the objective is multiplied by a weight, a constant to the gradient.

    The weight of exit k is lambda_k times what earlier exits left, plus `leak`; then a sample's weights are divided by
    their sum. So the loss is a mean over exits where other rules have a sum, and at one learning rate and weight decay
    CGT takes smaller steps; `total="exits"` gives it theirs. Of a sample, an exit leaves nothing where it is right and
    at least as sure as the threshold, else all ("hard"), or 1 - sigmoid(p - threshold), with p the probability of the
    true class ("soft"); what several exits left is multiplied.

    lambda goes in a straight line over the training, step by step, from (1, 0.7, 0.4, 0.1) to (0.2, 0.5, 0.8, 1). These
    are published for 4 exits; for others they are read off at the same depth. Probabilities are those of the classes,
    the damping neuron's share left out. (The published runs had label smoothing of 0.1: objective label-smoothing.)

    Not repeated here: the authors' program keeps the epoch that is best on test, and the times that it reports are of
    the full forward pass, whatever left early. Its README says tau 0.9, its hard gate trains with 0.5.

    Args:
        gate: "hard" or "soft".
        threshold: tau, from 0 to 1. Without it the published one: 0.5 for hard, 0.9 for soft.
        leak: What every exit gets of every sample, before the division; above 0.
        total: What the weights of a sample add up to: "one", as in the authors' program, or the number of "exits".
    """

    gate: Literal["hard", "soft"] = "soft"
    threshold: Annotated[float | None, SHARE] = None
    leak: Annotated[float, ABOVE_0] = 1e-3
    total: Literal["one", "exits"] = field(default="one", metadata=LATER)

    def __post_init__(self) -> None:
        check_fields(self)
        self._tau: float = _THRESHOLDS[self.gate] if self.threshold is None else self.threshold
        self.threshold = self._tau

    def step(self, batch: Batch, progress: float) -> Outcome:
        """A step on weighted shares."""
        return self.bench.descend(batch, progress, reweight=self._reweight)

    def _reweight(self, terms: Terms, logits_KBC: Tensor, targets_B: Tensor, progress: float) -> Terms:
        log_probs_KBN = class_log_probs(logits_KBC.detach(), self.bench.network.num_classes)
        return terms.weighted(self.weights(log_probs_KBN, targets_B, progress))

    def weights(self, log_probs_KBN: Tensor, targets_B: Tensor, progress: float) -> Tensor:
        """Weights `[K, B]` for log-probabilities of the classes."""
        K, B, _ = log_probs_KBN.shape
        true_KB = log_probs_KBN.gather(-1, targets_B.expand(K, B).unsqueeze(-1)).squeeze(-1).exp()
        if self.gate == "hard":
            dealt_with_KB = (log_probs_KBN.argmax(-1) == targets_B) & (true_KB >= self._tau)
            left_KB = 1 - dealt_with_KB.to(true_KB)
        else:
            left_KB = 1 - torch.sigmoid(true_KB - self._tau)
        left_B, rows = torch.ones_like(true_KB[0]), []
        for start, end, left_here_B in zip(by_depth(_AT_START, K), by_depth(_AT_END, K), left_KB, strict=True):
            rows.append((start + progress * (end - start)) * left_B + self.leak)
            left_B = left_B * left_here_B
        weight_KB = torch.stack(rows)
        weight_KB = weight_KB / weight_KB.sum(0)
        return weight_KB * K if self.total == "exits" else weight_KB
