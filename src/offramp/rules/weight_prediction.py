"""The small network that weighs samples by how they fare at each exit (Han et al., ECCV 2022).

K exits, B samples, C outputs of an exit, I inputs of the small network.
"""

from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from offramp.network import class_log_probs
from offramp.objectives import CrossEntropy

Inputs: TypeAlias = Literal["loss", "confidence", "both"]
Centre: TypeAlias = Literal["row", "col", "mat"]


class WeightPredictor(nn.Module):
    """Weights 1 + epsilon (o - mean o), with o the outputs of a perceptron with ReLU inside and tanh at the end.

    With the outputs of all samples in a table `[B, K]`, the mean runs over each column ("row"), each row ("col") or all
    of it ("mat"); the names are those of the authors' program. So the weights average to 1 over the samples for each
    exit, over the exits for each sample, or over everything. They are not clipped, as in that program: under "col" they
    can be anywhere in 1 ± 2 epsilon (K - 1)/K, and negative.

    Args:
        num_exits: K.
        inputs: What it sees of a sample at each exit: the "loss" (the cross-entropy over all C outputs), the
            "confidence" (the largest class probability) or "both", losses first.
        centre: What the mean runs over.
        epsilon: How far weights may go from 1.
        hidden: Width of the hidden layers.
        layers: Number of hidden layers.
    """

    def __init__(
        self, num_exits: int, *, inputs: Inputs, centre: Centre, epsilon: float, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.inputs, self.centre, self.epsilon = inputs, centre, epsilon
        widths = [num_exits * (2 if inputs == "both" else 1), *[hidden] * layers]
        parts: list[nn.Module] = []
        for width, following in pairwise(widths):
            parts += [nn.Linear(width, following), nn.ReLU()]
        self.perceptron = nn.Sequential(*parts, nn.Linear(hidden, num_exits), nn.Tanh())

    def features(self, logits_KBC: Tensor, targets_B: Tensor, num_classes: int) -> Tensor:
        """What `forward` wants, `[B, I]`, detached, from logits and classes."""
        logits_KBC = logits_KBC.detach()
        seen = []
        if self.inputs != "confidence":
            seen.append(CrossEntropy().terms(logits_KBC, targets_B).loss_KB)
        if self.inputs != "loss":
            seen.append(class_log_probs(logits_KBC, num_classes).amax(-1).exp())
        return torch.cat(seen).T

    def forward(self, features_BI: Tensor) -> Tensor:
        """Weights `[K, B]`."""
        outputs_BK: Tensor = self.perceptron(features_BI)
        if self.centre == "mat":
            mean = outputs_BK.mean()
        else:
            mean = outputs_BK.mean(0 if self.centre == "row" else 1, keepdim=True)
        return (1 + self.epsilon * (outputs_BK - mean)).T
