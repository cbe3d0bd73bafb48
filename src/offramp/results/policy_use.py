"""What a policy does on held-out images, exit by exit."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.evaluation import Certificate, Ladder
from offramp.policy import Policy
from offramp.results.dynamic import ExitUse


@dataclass(frozen=True)
class PolicyUse:
    """A policy, where it was written, and what it does on images of a held-out half: descriptions, no promises.

    Attributes:
        replaced: Whether its file held a certificate before, which is gone.
        full_top1: Accuracy of the last exit on all images, in percent.
        operations: Mean operations per image, with the heads of all exits up to the one taken.
        better_exit: The exit (from 1) that alone is right most often, where that is more often than the last one beyond
            doubt (two standard errors): a policy that keeps near the last exit then keeps near the wrong one.
        better_top1: Its accuracy on all images.
    """

    policy: Policy
    written: Path
    replaced: bool
    split: str
    images: int
    exits: tuple[ExitUse, ...]
    top1: float
    full_top1: float
    operations: float
    full_operations: int
    better_exit: int | None = None
    better_top1: float | None = None

    @property
    def certificate(self) -> Certificate | None:
        """What is promised of the policy; None where nothing is."""
        return Certificate.of(self.policy)

    def to_json(self) -> dict[str, Any]:
        """JSON values; accuracies in percent, shares in [0, 1]."""
        certificate = None if self.certificate is None else self.certificate.to_json()
        return {**dataclasses.asdict(self), "written": str(self.written), "certificate": certificate}


@dataclass(frozen=True)
class LadderUse:
    """A ladder, where it was written, and what its rungs do on images of a held-out half: descriptions, no promises."""

    ladder: Ladder
    written: Path
    rungs: tuple[PolicyUse, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; see `PolicyUse.to_json`."""
        return {
            "confidence": self.ladder.confidence,
            "rungs": [use.to_json() for use in self.rungs],
            "left_out": [dataclasses.asdict(rung) for rung in self.ladder.left_out],
            "written": str(self.written),
        }
