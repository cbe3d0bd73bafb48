"""The contract of a training rule: what happens to a batch, and the bench it works at.

K exits, B images here, C outputs. The training loop knows rules only through this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from offramp import processes
from offramp.batch import Batch
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, Link
from offramp.objectives import Objective, Terms
from offramp.objectives.base import settings_of
from offramp.rules import surgery
from offramp.rules.linked import linked

Reweight: TypeAlias = Callable[[Terms, Tensor, Tensor, float], Terms]
"""From the objective's terms, logits `[K, B, C]`, classes `[B]` and progress to the terms that are minimised."""


@dataclass(frozen=True)
class Outcome:
    """What a step leaves for the records, all detached.

    The loss (this process's share of the global mean), logits `[K, B, C]`, the objective's statistics `[K, B]`.
    """

    loss: Tensor
    logits_KBC: Tensor
    stats_KB: Mapping[str, Tensor]


@dataclass
class Workbench:
    """What a rule works with: network, objective, optimiser, a step made of parts, a gate before all weights."""

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

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits `[K, B, C]`, also of no image."""
        if not len(images_BCHW):
            # Fewer images than processes, and batch norm cannot train on none: take part in the sums of objective and
            # update, which the others wait for, with nothing to add.
            return self.parameters[0].new_zeros(self.network.num_exits, 0, self.network.num_outputs)
        with self.autocast():
            return self.forward(images_BCHW)

    def _exit_logits(self, images_BCHW: Tensor) -> list[Tensor]:
        if not len(images_BCHW):
            return list(self.logits(images_BCHW))
        with self.autocast():
            return self.network.exit_logits(images_BCHW)

    def descend(
        self,
        batch: Batch,
        progress: float,
        *,
        reweight: Reweight | None = None,
        link: Link | None = None,
        combine: surgery.Combine | None = None,
    ) -> Outcome:
        """Forward, loss, backward, update: one step on the objective, with a method's parts where it has any.

        `reweight` changes the shares of exits and samples before they are added up. `link` stands between stages and
        exits during this step. `combine` weighs the exits' gradients, see `surgery`; a rule with it has `needs_plain`.
        """
        self.optimizer.zero_grad()
        with linked(self.network, link):
            logits = [] if combine is None else self._exit_logits(batch.images_BCHW)
            logits_KBC = torch.stack(logits) if logits else self.logits(batch.images_BCHW)
            terms = self.objective.terms(logits_KBC, batch.targets_B, progress=progress)
            if reweight is not None:
                terms = reweight(terms, logits_KBC, batch.targets_B, progress)
            loss = terms.loss_KB.sum() / batch.size
            if combine is not None:
                surgery.backward(loss, logits, self.parameters, combine)
            elif loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        self.update(loss)
        return Outcome(loss.detach(), logits_KBC.detach(), terms.stats_KB)

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """One step of the optimiser, or of a method's own, with the gradients that stand in `.grad`.

        They are this process's share of the global mean's, as `loss` is: sums them over processes. Once one of them is
        not finite, nothing gets through any more, of any optimiser. The gate is on the device: no waiting.
        """
        optimizer = optimizer or self.optimizer
        if not optimizer.defaults.get("fused"):  # it would step through the gate
            raise UsageError(f"{type(optimizer).__name__} cannot skip a step on the device; make it with fused=True.")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        loss = _sum_gradients(loss.detach(), parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
        self.broken = torch.maximum(self.broken, (~(largest + loss).isfinite()).to(self.broken))
        # The protocol of torch.amp.GradScaler: a fused optimiser skips its step where found_inf is 1.
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = self.broken  # type: ignore[attr-defined]
        optimizer.step()


def _sum_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of the losses; gradients become plain sums, in one buffer, not by DistributedDataParallel.

    Shares of unequal size need no special case, exits that get no gradient do not hang, and rules that compute several
    gradients a step use the same way.
    """
    if not processes.active():
        return loss
    present = [p.grad is not None for p in parameters]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    shares = [loss.reshape(1), loss.new_tensor(present, dtype=loss.dtype), *(g.reshape(-1) for g in gradients)]
    total = processes.sum_over_all(torch.cat(shares))
    loss, presences, *sums = torch.split(total, [share.numel() for share in shares])
    if not any(present):  # no image of this batch is here: the parameters that have a gradient elsewhere
        present = (presences > 0).tolist()
    for parameter, gradient, part, has in zip(parameters, gradients, sums, present, strict=True):
        # Copied into what is there: a fused step walks memory, so a gradient needs its weight's layout.
        parameter.grad = gradient.copy_(part.view_as(parameter)) if has else None
    return loss[0]


class TrainingRule(ABC):
    """What happens to a batch and at the end of an epoch.

    A rule subclasses this and nothing else. It writes `step`, most often as `Workbench.descend` with its parts, and of
    the methods that do nothing here those that it needs.
    """

    needs_plain: ClassVar[bool] = False
    """Whether the rule needs the plain network: no faster form (second order, other weights, a pass for each exit)."""
    needs_images: ClassVar[bool] = False
    """Whether it looks at the images itself: with a frozen trunk the network may be given features in their place."""

    def check(self, network: EarlyExitNet) -> None:  # noqa: B027 - most rules train any network
        """Refuse a network that the rule is not made for; called before anything is written."""

    def epochs_together(self, network: EarlyExitNet) -> int:
        """How many epochs make one of the method's: a run has a multiple of it, or it is refused."""
        return 1

    @final
    def prepare(self, bench: Workbench) -> None:
        """Called once, before the first step and before `load_state`."""
        self.bench = bench
        self.set_up()

    def set_up(self) -> None:  # noqa: B027
        """Make what the rule works with besides `bench`: a network or an optimiser of its own."""

    @abstractmethod
    def step(self, batch: Batch, progress: float) -> Outcome:
        """Train on this process's share of a batch (it may be empty). `progress` of the whole training, in `[0, 1)`."""

    @final
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
