"""What the objectives on the damping neuron share: cross-entropy plus damping, each exit and sample under a weight.

K exits, B images, C = N + 1 outputs.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from offramp.network import NO_NEURON
from offramp.objectives.base import Objective, Terms, log_softmax, pick
from offramp.objectives.weighting import DynamicWeights, Weighting


class DampedObjective(Objective):
    """Shares w (ce + gamma a), with ce = -log F[y] and a = -log F[N+1]; gamma is a constant to the gradient.

    An exit that has no neuron where others do (`offramp.network.NO_NEURON`) is left out: its share is ce, its weight 1,
    and the weights of the others are what they would be without it. Its statistics have a and gamma 0.

    Subclasses say what gamma is, and have a field `weighting`.
    """

    damping_neuron = "required"

    weighting: Weighting

    @abstractmethod
    def damping(self, a_KB: Tensor) -> Tensor:
        """Coefficient `[K, B]` of the damping of each exit and sample, for `a` (weighted, where weights act inside)."""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """See `Objective.terms`."""
        log_true_KB, log_damping_KB = _pick_with_neuron(log_softmax(logits_KBC), targets_B)
        without_KB = log_damping_KB < NO_NEURON / 2
        a_KB = -log_damping_KB.masked_fill(without_KB, 0.0)
        if isinstance(self.weighting, DynamicWeights):
            # The mean of the others moves neither their mean nor their extremes.
            mean_B = a_KB.sum(0) / (~without_KB).sum(0).clamp_min(1)
            weight_KB = self.weighting.weights(torch.where(without_KB, mean_B, a_KB)).masked_fill(without_KB, 1.0)
            applied_to = self.weighting.applied_to
        else:
            weight_KB, applied_to = torch.ones_like(a_KB), "gradient"
        constant_a_KB, constant_weight_KB = a_KB.detach(), weight_KB.detach()
        if applied_to == "root":
            gamma_KB = self.damping(constant_weight_KB * constant_a_KB)
        else:
            gamma_KB = self.damping(constant_a_KB)
        gamma_KB = gamma_KB.masked_fill(without_KB, 0.0)
        if applied_to == "cross-entropy":
            loss_KB = gamma_KB * a_KB - weight_KB * log_true_KB
            # Proposition 1 holds with the damping per unit of cross-entropy; a weight can be 0 where alpha is 1.
            eps, weight = torch.finfo(a_KB.dtype).eps, constant_weight_KB
            gamma_KB = gamma_KB / torch.where(weight < 0, weight.clamp_max(-eps), weight.clamp_min(eps))
        else:
            loss_KB = weight_KB * (gamma_KB * a_KB - log_true_KB)
        true_KB = log_true_KB.detach().exp()
        stats_KB = {
            "F_true": true_KB,
            "F_damping": log_damping_KB.detach().exp(),
            "a": constant_a_KB,
            "gamma": gamma_KB,
            "weight": constant_weight_KB,
            "off_or_reversed": _off_or_reversed(true_KB, gamma_KB, constant_weight_KB).to(true_KB),
        }
        return Terms(loss_KB, stats_KB)

    def push(
        self, logits_KBC: Tensor, targets_B: Tensor, stats_KB: Mapping[str, Tensor], *, progress: float = 0.0
    ) -> Tensor:
        """See `Objective.push`: 1 - F[y] - gamma F[y] (Proposition 1), unless the weights carry a gradient."""
        if isinstance(self.weighting, DynamicWeights) and self.weighting.with_gradient:
            return super().push(logits_KBC, targets_B, stats_KB, progress=progress)
        log_true_KB = pick(log_softmax(logits_KBC), targets_B)
        return -log_true_KB.expm1() - stats_KB["gamma"] * log_true_KB.exp()


def _off_or_reversed(true_KB: Tensor, gamma_KB: Tensor, weight_KB: Tensor) -> Tensor:
    """Where F[y] is not pushed up: beyond the point of Proposition 1, or under a negative weight, up to it."""
    return torch.where(weight_KB < 0, (1 + gamma_KB) * true_KB <= 1, true_KB >= 1 / (1 + gamma_KB))


def _pick_with_neuron(log_probs_KBC: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
    """The entries `[K, B]` of each sample's class and of the damping neuron: one gather, so one scatter backward."""
    num_exits, _, num_outputs = log_probs_KBC.shape
    index_B2 = torch.stack([targets_B, torch.full_like(targets_B, num_outputs - 1)], dim=-1)
    log_true_KB, log_damping_KB = log_probs_KBC.gather(-1, index_B2.expand(num_exits, -1, -1)).unbind(-1)
    return log_true_KB, log_damping_KB
