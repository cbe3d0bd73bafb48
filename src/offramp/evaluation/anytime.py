"""Anytime prediction: every exit over a whole data set, without thresholds (paper, Tables 1 to 8).

K exits, S images, B images of a piece, N classes, C outputs. All figures go through `class_log_probs`: the softmax runs
over all outputs and the damping neuron's share is left out (reading A9(b)), or the classes are renormalised to sum to 1
(A9(a)). Accuracy is the same under both.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from offramp.evaluation.calibration import Reliability, reliability
from offramp.evaluation.damping import DampingFigures, damping_figures
from offramp.evaluation.record import Record, pieces
from offramp.network import class_log_probs
from offramp.terminal import with_error

TOP5_FROM = 11  # classes from which top-5 says something
MASTERED = 50.0  # percent of a class's images an exit must get right to be said to know the class


@dataclass(frozen=True)
class ExitFigures:
    """One exit over a data set.

    Attributes:
        top1: Accuracy in percent; `top1_se` is its binomial standard error.
        top5: Percentage of images whose class is among the five likeliest; None with ten classes or fewer.
        nll: Mean negative log-likelihood of the true class, in nats.
        damping: None without the damping neuron.
        class_top1: Accuracy in percent of each class; None where the data set has no image of it.
    """

    top1: float
    top1_se: float
    top5: float | None
    nll: float
    reliability: Reliability
    damping: DampingFigures | None
    class_top1: tuple[float | None, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error over 15 bins, in [0, 1]."""
        return self.reliability.ece


@dataclass(frozen=True)
class Anytime:
    """Every exit over a data set.

    Attributes:
        mean_top1: Plain mean of the exits' accuracies, in percent (the paper's "Avg").
        mean_top1_se: Its standard error over images; the exits see the same images, so it is no mean of theirs.
        renormalised: Whether likelihood and calibration are of classes that sum to 1 (A9(a)).
    """

    exits: tuple[ExitFigures, ...]
    mean_top1: float
    mean_top1_se: float
    split: str
    num_images: int
    class_names: tuple[str, ...]
    class_images: tuple[int, ...]
    renormalised: bool

    @property
    def knows_from(self) -> tuple[int | None, ...]:
        """For each class the first exit (from 0) that gets at least half of its images right; None if none does."""
        return tuple(
            next((k for k, right in enumerate(exits) if right is not None and right >= MASTERED), None)
            for exits in zip(*(exit.class_top1 for exit in self.exits), strict=True)
        )

    @property
    def deep_only(self) -> tuple[str, ...]:
        """The classes that only deep exits know: no exit of the first half gets half of their images right."""
        half = len(self.exits) / 2
        return tuple(
            name for name, k in zip(self.class_names, self.knows_from, strict=True) if k is not None and k >= half
        )

    def __str__(self) -> str:
        lines = [f"{self.split}, {self.num_images} images", "exit      top-1 %      nll     ece"]
        lines += [
            f"{k:4d}  {with_error(exit.top1, exit.top1_se, self.num_images):>12}  {exit.nll:7.4f}  {exit.ece:6.4f}"
            for k, exit in enumerate(self.exits, 1)
        ]
        return "\n".join([*lines, f"mean  {with_error(self.mean_top1, self.mean_top1_se, self.num_images):>12}"])


def anytime(record: Record, *, renormalise: bool = False) -> Anytime:
    """The figures of every exit of `record`."""
    images_N = record.targets_S.bincount(minlength=record.num_classes)
    rights_S = torch.zeros(record.num_images, dtype=torch.float64)
    exits = []
    for logits_SC in record.logits_KSC:
        figures, right_S = _exit_figures(logits_SC, record, images_N, renormalise)
        exits.append(figures)
        rights_S += right_S
    share_S = rights_S / len(exits)
    return Anytime(
        exits=tuple(exits),
        mean_top1=100 * share_S.mean().item(),
        mean_top1_se=100 * share_S.std(correction=0).item() / sqrt(record.num_images),
        split=record.split,
        num_images=record.num_images,
        class_names=record.class_names,
        class_images=tuple(images_N.tolist()),
        renormalised=renormalise,
    )


def _exit_figures(logits_SC: Tensor, record: Record, images_N: Tensor, renormalise: bool) -> tuple[ExitFigures, Tensor]:
    """The figures of one exit, and which images it gets right (float64)."""
    N, targets_S = record.num_classes, record.targets_S
    best_S, true_S = torch.empty_like(logits_SC[:, 0]), torch.empty_like(logits_SC[:, 0])
    right_S, among_5_S = (torch.zeros_like(targets_S, dtype=torch.float64) for _ in range(2))
    for here in pieces(*logits_SC.shape):
        log_probs_BN, targets_B1 = class_log_probs(logits_SC[here], N, renormalise=renormalise), targets_S[here, None]
        best_S[here], class_B = log_probs_BN.max(-1)
        true_S[here] = log_probs_BN.gather(-1, targets_B1).squeeze(-1)
        right_S[here] = (class_B == targets_S[here]).double()
        if N >= TOP5_FROM:
            among_5_S[here] = (log_probs_BN.topk(5).indices == targets_B1).any(-1).double()
    share = right_S.mean().item()
    class_right = targets_S.bincount(weights=right_S, minlength=N).tolist()
    figures = ExitFigures(
        top1=100 * share,
        top1_se=100 * sqrt(share * (1 - share) / record.num_images),
        top5=100 * among_5_S.mean().item() if N >= TOP5_FROM else None,
        nll=-true_S.double().mean().item(),
        reliability=reliability(best_S.exp(), right_S),
        damping=damping_figures(logits_SC, N) if record.damping else None,
        class_top1=tuple(
            100 * right / images if images else None
            for right, images in zip(class_right, images_N.tolist(), strict=True)
        ),
    )
    return figures, right_S
