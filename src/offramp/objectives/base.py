"""The contract of a training objective: each exit's and sample's share of the loss, and what the paper talks about.

K exits, B images, N classes, C outputs (N, or N + 1 with the damping neuron, which is the last).
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offramp.config import to_json
from offramp.errors import UsageError

LATER: Mapping[str, Any] = {"later": True}
"""Metadata of a field that a method gained when there were runs of it: not told while it has its default."""


@dataclass(frozen=True)
class Terms:
    """What an objective says about a batch.

    Attributes:
        loss_KB: Each exit's and sample's share; the loss is its mean over samples, summed over exits. Its gradient,
            too, is separable: share `[k, b]` gives the gradient that exit k gets from sample b. (The one exception:
            dynamic weights that carry a gradient join the exits.)
        stats_KB: Named quantities per exit and sample, detached. Names in use: `F_true` (softmax of the true class),
            `F_damping` (softmax of the damping neuron, F[N+1]), `a` (-log F[N+1]), `gamma` (damping coefficient, over
            the weight of the cross-entropy), `weight` (dynamic weight), `off_or_reversed` (1 where the gradient on the
            true class is off or reversed; with damping where F[y] >= 1/(1 + gamma), Proposition 1, and under a negative
            weight up to there).
    """

    loss_KB: Tensor
    stats_KB: Mapping[str, Tensor]

    def weighted(self, weight_KB: Tensor) -> "Terms":
        """The same under further weights `[K, B]`, which the statistic `weight` holds too."""
        weight = self.stats_KB.get("weight", 1) * weight_KB.detach()
        return Terms(weight_KB * self.loss_KB, {**self.stats_KB, "weight": weight})


class Objective(ABC):
    """A training loss over all exits. Subclasses are frozen dataclasses whose fields are the method's settings."""

    damping_neuron: ClassVar[Literal["required", "allowed", "refused"]] = "allowed"
    """Whether the network must have, may have, or must not have a damping neuron."""

    @abstractmethod
    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        """Shares and statistics for logits `[K, B, C]` and classes `[B]` in `[0, N)`.

        `progress` is the share of the training that is done, in `[0, 1)`, for methods that change on the way.
        A process whose share of the batch is empty (B = 0) calls this as well: sums over the batch need every process.
        """

    def push(
        self, logits_KBC: Tensor, targets_B: Tensor, stats_KB: Mapping[str, Tensor], *, progress: float = 0.0
    ) -> Tensor:
        """How strongly a sample's loss pushes the logit of its true class up at each exit, `[K, B]`, weights apart.

        Minus the derivative of the sample's shares by that logit, per unit of the statistic `weight` where it has one:
        1 - F[y] in plain cross-entropy, 0 where the gradient is off, below 0 where it is reversed. Here by automatic
        differentiation of `terms`, which holds for every objective; those whose closed form is short give that.
        As with `terms`, every process calls it with its share of the batch; `stats_KB` are what `terms` said of it.
        """
        with torch.enable_grad():
            leaf_KBC = logits_KBC.detach().to(_at_least_float32(logits_KBC)).requires_grad_()
            terms = self.terms(leaf_KBC, targets_B, progress=progress)
            if not terms.loss_KB.requires_grad:
                return torch.zeros_like(terms.loss_KB)
            (gradient_KBC,) = torch.autograd.grad(terms.loss_KB.sum(), leaf_KBC)
        push_KB = -pick(gradient_KBC, targets_B)
        weight_KB = terms.stats_KB.get("weight")
        # Where the weight is 0, so is the gradient of what it weighs.
        return push_KB if weight_KB is None else push_KB / weight_KB.masked_fill(weight_KB == 0, 1.0)

    def __call__(self, logits: Tensor | Sequence[Tensor], targets_B: Tensor, *, progress: float = 0.0) -> Tensor:
        """The scalar loss: sum over exits, mean over samples (paper, section 3.1).

        Logits are `[K, B, C]`, or `[B, C]` of each exit.
        """
        logits_KBC = logits if isinstance(logits, Tensor) else torch.stack(tuple(logits))
        return self.terms(logits_KBC, targets_B, progress=progress).loss_KB.mean(1).sum()


def settings_of(method: Any) -> dict[str, Any]:
    """A method's settings as a run's folder records them: JSON values.

    The fields of a dataclass; of any other class the public attributes that JSON can hold.
    """
    if not dataclasses.is_dataclass(method):
        return {key: to_json(value) for key, value in vars(method).items() if key[0] != "_" and _is_json(value)}
    values: dict[str, Any] = to_json(method)
    for field in dataclasses.fields(method):
        if field.metadata.get("later") and getattr(method, field.name) == field.default:
            del values[field.name]
    return values


def _is_json(value: Any) -> bool:
    try:
        to_json(value)
    except UsageError:
        return False
    return True


def check_fits(objective: Objective, *, damping: bool) -> None:
    """Refuse an objective on a network (with or without the damping neuron) that it is not made for."""
    name = type(objective).__name__
    if objective.damping_neuron == "required" and not damping:
        raise UsageError(f"{name} needs the damping neuron and the network has none: build it with damping=True.")
    if objective.damping_neuron == "refused" and damping:
        raise UsageError(f"{name} takes no damping neuron and the network has one: build it with damping=False.")


def log_softmax(logits_KBC: Tensor) -> Tensor:
    """Log-softmax over all C outputs, in float32 at least, also inside bf16 autocast."""
    return logits_KBC.log_softmax(-1, dtype=_at_least_float32(logits_KBC))


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def pick(log_probs_KBC: Tensor, targets_B: Tensor) -> Tensor:
    """The entries `[K, B]` of each sample's own class."""
    index_KB1 = targets_B.expand(log_probs_KBC.shape[0], -1).unsqueeze(-1)
    return log_probs_KBC.gather(-1, index_KB1).squeeze(-1)
