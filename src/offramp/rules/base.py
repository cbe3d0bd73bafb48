"""The contract of a training rule: what happens to a batch, and the bench it works at.

K exits, B images here, C outputs. The training loop knows rules only through this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from offramp import processes
from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import Objective
from offramp.objectives.base import settings_of


@dataclass
class Workbench:
    """What a rule works with: network, objective, optimiser, and the one guarded way to change the weights."""

    network: EarlyExitNet
    """What is trained; where a frozen trunk's features are kept, the heads alone."""
    forward: Callable[[Tensor], Tensor]
    """The network, or a faster form of it: images `[B, ...]` to logits `[K, B, C]`."""
    objective: Objective
    optimizer: torch.optim.Optimizer
    precision: Literal["float32", "bf16"] = "float32"
    broken: Tensor = field(init=False)
    """On the device: 1 once a gradient was not finite. From then on no update reaches the weights."""

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.broken = torch.zeros((), device=self.parameters[0].device)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass: bf16 autocast where asked for; the weights stay float32."""
        if self.precision == "bf16":
            return torch.autocast(self.broken.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def update(self, loss: Tensor) -> None:
        """One optimiser step with the gradients that stand in `.grad`: this process's share of the global mean's.

        Sums them over processes and lets nothing through where they, or `loss` (this process's share), are not finite.
        The gate is on the device: no waiting.
        """
        loss = self._sum_gradients(loss.detach())
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
        self.broken = torch.maximum(self.broken, (~(largest + loss).isfinite()).to(self.broken))
        # The protocol of torch.amp.GradScaler: a fused optimiser skips its step where found_inf is 1.
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = self.broken  # type: ignore[attr-defined]
        self.optimizer.step()

    def _sum_gradients(self, loss: Tensor) -> Tensor:
        """The sum of the losses; gradients become plain sums, in one buffer, not by DistributedDataParallel.

        Shares of unequal size need no special case, exits that get no gradient do not hang, and rules that compute
        several gradients a step use the same way.
        """
        if not processes.active():
            return loss
        present = [p.grad is not None for p in self.parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        shares = [loss.reshape(1), loss.new_tensor(present, dtype=loss.dtype), *(g.reshape(-1) for g in gradients)]
        total = processes.sum_over_all(torch.cat(shares))
        loss, presences, *sums = torch.split(total, [share.numel() for share in shares])
        if not any(present):  # no image of this batch is here: the parameters that have a gradient elsewhere
            present = (presences > 0).tolist()
        for parameter, gradient, part, has in zip(self.parameters, gradients, sums, present, strict=True):
            # Copied into what is there: a fused step walks memory, so a gradient needs its weight's layout.
            parameter.grad = gradient.copy_(part.view_as(parameter)) if has else None
        return loss[0]


@dataclass(frozen=True)
class Outcome:
    """What a step leaves for the records, all detached.

    The loss (this process's share of the global mean), logits `[K, B, C]`, the objective's statistics `[K, B]`.
    """

    loss: Tensor
    logits_KBC: Tensor
    stats_KB: Mapping[str, Tensor]


class TrainingRule(ABC):
    """What happens to a batch and at the end of an epoch."""

    needs_plain: ClassVar[bool] = False
    """Whether the rule needs the plain network: no faster form (second order, other weights, a pass for each exit)."""
    needs_images: ClassVar[bool] = False
    """Whether it looks at the images itself: with a frozen trunk the network may be given features in their place."""

    def check(self, network: EarlyExitNet) -> None:  # noqa: B027 - most rules train any network
        """Refuse a network that the rule is not made for; called before anything is written.

        Raises:
            UsageError: The reason, and the way out.
        """

    def epochs_together(self, network: EarlyExitNet) -> int:
        """How many epochs make one of the method's: a run has a multiple of it, or it is refused."""
        return 1

    def prepare(self, bench: Workbench) -> None:
        """Called once, before the first step and before `load_state`."""
        self.bench = bench

    @abstractmethod
    def step(self, batch: Batch, progress: float) -> Outcome:
        """Train on this process's share of a batch (it may be empty). `progress` of the whole training, in `[0, 1)`."""

    def settings(self) -> dict[str, Any]:
        """The method's settings as JSON values: a run is refused in a folder whose settings differ.

        As of objectives: the fields of a dataclass, else the public attributes that JSON can hold, as they are before
        `prepare`. A run that the method listens to is its setting `teacher`, a path.
        """
        return settings_of(self)

    def end_epoch(self) -> None:  # noqa: B027 - most rules have nothing to do there
        """Called after the last batch of every epoch."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides network and optimiser."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """The inverse of `state`."""
