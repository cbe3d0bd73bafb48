"""The contract of a training objective: each exit's and sample's share of the loss, and what the paper talks about.

K exits, B images, N classes, C outputs (N, or N + 1 with the damping neuron, which is the last).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """What an objective says about a batch.

    Attributes:
        loss_KB: Each exit's and sample's share; the loss is its mean over samples, summed over exits. Its gradient,
            too, is separable: share `[k, b]` gives the gradient that exit k gets from sample b.
        stats_KB: Named quantities per exit and sample, detached. Names in use: `F_true` (softmax of the true class),
            `F_damping` (softmax of the damping neuron, F[N+1]), `a` (-log F[N+1]), `gamma` (damping coefficient),
            `weight` (dynamic weight), `off_or_reversed` (1 where F[y] >= 1/(1 + gamma): the gradient on the true class
            is off or reversed, Proposition 1).
    """

    loss_KB: Tensor
    stats_KB: Mapping[str, Tensor]


class Objective(ABC):
    """A training loss over all exits. Subclasses are frozen dataclasses whose fields are the method's settings."""

    damping_neuron: ClassVar[Literal["required", "allowed", "refused"]] = "allowed"
    """Whether the network must have, may have, or must not have a damping neuron."""

    @abstractmethod
    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """Shares and statistics for logits `[K, B, C]` and classes `[B]` in `[0, N)`.

        `progress` is the share of the training that is done, in `[0, 1)`, for methods that change on the way.
        """

    def __call__(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Tensor:
        """The scalar loss: sum over exits, mean over samples (paper, section 3.1; ambiguity A11)."""
        return self.terms(logits_KBC, targets_B, progress=progress).loss_KB.mean(1).sum()


def log_softmax(logits_KBC: Tensor) -> Tensor:
    """Log-softmax over all C outputs, in float32 at least, also inside bf16 autocast."""
    if logits_KBC.dtype in (torch.float16, torch.bfloat16):
        logits_KBC = logits_KBC.float()
    return logits_KBC.log_softmax(-1)


def pick(log_probs_KBC: Tensor, targets_B: Tensor) -> Tensor:
    """The entries `[K, B]` of each sample's own class."""
    index_KB1 = targets_B.expand(log_probs_KBC.shape[0], -1).unsqueeze(-1)
    return log_probs_KBC.gather(-1, index_KB1).squeeze(-1)
