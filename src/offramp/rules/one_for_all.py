"""One-for-all distillation, the second stage of IMTA (Li et al., ICCV 2019): a trained last exit teaches the others.

K exits, B images here, C outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from offramp.batch import Batch
from offramp.checks import ABOVE_0, SHARE, check_fields
from offramp.errors import OfframpError, UsageError
from offramp.loading import load
from offramp.network import Carry, EarlyExitNet
from offramp.objectives import Terms
from offramp.objectives.base import LATER, log_softmax
from offramp.rules.base import Outcome, TrainingRule
from offramp.storage import weights_hash


@dataclass(eq=False)
class OneForAll(TrainingRule):
    """The share L_k of every exit but the last in the objective becomes (1 - share) L_k + share T² KL(t/T, z_k/T).

    KL is that of the softmax of the teacher's last logits t to the softmax of the exit's logits z_k, both divided by
    the temperature T, over all C outputs. The teacher is a finished run, its network in evaluation mode and never
    trained. In IMTA it comes from gradient equilibrium; the authors' program takes the epoch of it that was worst on
    test, by a fault (see `GradientEquilibrium`).

    Args:
        teacher: Folder of the teacher's run. Same outputs and images, and a damping neuron where the network has one.
        share: gamma, from 0 to 1. Published for ImageNet: 0.1.
        temperature: T, above 0. Published for ImageNet: 1.
        reduction: The terms of KL are summed over outputs ("sum"), which is the distillation of the textbooks, or their
            mean is taken ("outputs"), as in the authors' program, which makes it C times smaller.
    """

    needs_images = True  # for the teacher

    teacher: str
    share: Annotated[float, SHARE] = 0.1
    temperature: Annotated[float, ABOVE_0] = 1.0
    reduction: Literal["sum", "outputs"] = field(default="sum", metadata=LATER)

    def __post_init__(self) -> None:
        check_fields(self)
        self._network: EarlyExitNet | None = None

    def check(self, network: EarlyExitNet) -> None:
        """Read the teacher, and refuse one that answers something else."""
        teacher = self._teacher()
        for what, theirs, ours in (
            ("classes", teacher.num_classes, network.num_classes),
            ("damping neurons", int(teacher.damping), int(network.damping)),
        ):
            if theirs != ours:
                raise UsageError(
                    f"The teacher {self.teacher} has {theirs} {what} and the network {ours}; take another."
                )
        if None not in (teacher.image_shape, network.image_shape) and teacher.image_shape != network.image_shape:
            raise UsageError(
                f"The teacher {self.teacher} was made for images of shape {teacher.image_shape}, the network for "
                f"{network.image_shape}; take another."
            )

    def set_up(self) -> None:
        """Put the teacher where the network is."""
        self._teacher().to(self.bench.broken.device, self.bench.parameters[0].dtype)

    def step(self, batch: Batch, progress: float) -> Outcome:
        """Ask the teacher, then a step on shares that its answers are part of."""
        taught_BC = self._ask(batch.images_BCHW)
        return self.bench.descend(batch, progress, reweight=partial(self._reweight, taught_BC))

    def _teacher(self) -> EarlyExitNet:
        if self._network is None:
            self._network = load(self.teacher).requires_grad_(False)
            self._hash = weights_hash(self._network.state_dict())
        return self._network

    @torch.no_grad()
    def _ask(self, images_BCHW: Tensor) -> Tensor:
        teacher = self._teacher()
        if not len(images_BCHW):
            return self.bench.parameters[0].new_zeros(0, teacher.num_outputs)
        carry: Carry = (images_BCHW,)
        with self.bench.autocast():
            for k in range(teacher.num_exits):
                carry = teacher.run_stage(k, carry)
            return teacher.run_exit(teacher.num_exits - 1, carry)

    def _reweight(
        self, taught_BC: Tensor, terms: Terms, logits_KBC: Tensor, targets_B: Tensor, progress: float
    ) -> Terms:
        T = self.temperature
        told_KBC, taught_BC = log_softmax(logits_KBC[:-1] / T), log_softmax(taught_BC / T)
        distance_KB = kl_div(told_KBC, taught_BC.expand_as(told_KBC), reduction="none", log_target=True).sum(-1) * T**2
        if self.reduction == "outputs":
            distance_KB = distance_KB / logits_KBC.shape[-1]
        early_KB = (1 - self.share) * terms.loss_KB[:-1] + self.share * distance_KB
        stat_KB = torch.cat([distance_KB.detach(), torch.zeros_like(terms.loss_KB[-1:])])
        return Terms(torch.cat([early_KB, terms.loss_KB[-1:]]), {**terms.stats_KB, "distillation": stat_KB})

    def state(self) -> dict[str, Tensor]:
        """Which teacher it was: the hash of its weights, in ASCII."""
        self._teacher()
        return {"teacher": torch.tensor(list(self._hash.encode()), dtype=torch.uint8)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse to go on with another teacher."""
        if not torch.equal(state["teacher"].cpu(), self.state()["teacher"]):
            raise OfframpError(
                f"The teacher {self.teacher} is not the one that the run began with; put that back, or train in a new "
                "folder."
            )
