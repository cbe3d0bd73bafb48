"""Dynamic inference on the test set, as values: what thresholds do, and who pays for leaving early.

K exits, S images of the test set.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.costs import Cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate, Curve, Point, Record, budgeted, curve, policy_for, search_thresholds
from offramp.evaluation.thresholds import check_times
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy

BUDGETS = 8  # for which thresholds are searched, evenly spaced from the first exit's operations to the last's
MAX_DROP = 0.5  # percentage points; of the policy that is found where the run has none
SHOWN = 10  # test images an exit
FEW = 200  # images; of fewer, a half is uncertain by more than 3.5 points (one standard error)


@dataclass(frozen=True)
class ExitUse:
    """What a policy does at one exit: how many images leave there, and their share of all, in [0, 1].

    Attributes:
        threshold: Confidence from which an image leaves.
        top1: Accuracy of their answers, in percent; None where none leaves. `full_top1`: of the last exit on them.
    """

    threshold: float
    images: int
    share: float
    top1: float | None
    full_top1: float | None


@dataclass(frozen=True)
class ClassUse:
    """The test images of one class.

    Attributes:
        top1: Accuracy under the policy, in percent; None where there is no image. `full_top1`: of the last exit.
        lost: Images answered wrongly that the last exit gets right; `gained`: the reverse.
        shares: Share of the class's images that leaves at each exit; empty where there is no image.
    """

    name: str
    images: int
    top1: float | None
    full_top1: float | None
    lost: int
    gained: int
    shares: tuple[float, ...]

    @property
    def difference(self) -> float | None:
        """What the class gains (or, below 0, loses) by leaving early, in percentage points."""
        return 100 * (self.gained - self.lost) / self.images if self.images else None


@dataclass(frozen=True)
class Picked:
    """A test image to look at.

    Attributes:
        index: Its position in the official test set.
        confidence: Of the exit taken, in the measure's units.
    """

    index: int
    target: int
    answer: int
    confidence: float


@dataclass(frozen=True)
class Dynamic:
    """What thresholds do on the test set.

    Attributes:
        published: The 39 published points.
        searched: Thresholds searched for `BUDGETS` budgets.
        point: The policy looked at in detail, and what it does.
        certificate: What is promised of that policy, if anything is.
        source: Name of the file it was read from; None where it was found here.
        note: What there is to say of a file that was left aside; None where nothing is.
        search_images: How many images thresholds are found on.
        full_top1: Accuracy of the last exit, in percent.
        full_operations: Operations of the whole network.
        exits: Who leaves at each exit.
        classes: Who pays, in the order of the classes.
        picked: Images to look at, per exit: the surest of those that leave there; at the last exit those of which the
            exits before were least sure (by the surest of these).
    """

    published: Curve
    searched: Curve
    point: Point
    certificate: Certificate | None
    source: str | None
    note: str | None
    search_images: int
    full_top1: float
    full_operations: int
    exits: tuple[ExitUse, ...]
    classes: tuple[ClassUse, ...]
    picked: tuple[tuple[Picked, ...], ...]

    @property
    def policy(self) -> Policy:
        """The policy looked at in detail."""
        return self.point.policy

    @property
    def share(self) -> float:
        """The policy's operations as a share of the whole network's."""
        return self.point.operations / self.full_operations

    @property
    def warning(self) -> str | None:
        """That thresholds rest on few images; None where they do not."""
        if self.search_images >= FEW:
            return None
        return (
            f"Warning: thresholds rest on {self.search_images} images, fewer than {FEW}: on other images they may do "
            f"otherwise than here. A training with --holdout {2 * FEW} leaves enough, if there are so "
            "many to spare."
        )

    @property
    def milliseconds(self) -> float | None:
        """Expected per image, by the times that the policy was found for; None where it was found for none."""
        times = self.policy.found.get("times")
        return None if times is None else sum(s * time for s, time in zip(self.point.shares, times, strict=True))

    @property
    def lost(self) -> int:
        """Images answered wrongly that the last exit gets right."""
        return sum(row.lost for row in self.classes)

    @property
    def gained(self) -> int:
        """Images answered rightly that the last exit gets wrong."""
        return sum(row.gained for row in self.classes)

    def to_json(self) -> dict[str, Any]:
        """JSON values; accuracies in percent, shares in [0, 1]."""
        return {
            "published": [_point_json(point) for point in self.published.points],
            "searched": [_point_json(point) for point in self.searched.points],
            "policy": asdict(self.policy),
            "policy_file": self.source,
            "note": self.note,
            "search_images": self.search_images,
            "warning": self.warning,
            "accuracy": self.point.accuracy,
            "full_accuracy": self.full_top1,
            "operations": self.point.operations,
            "operations_share": self.share,
            "milliseconds": self.milliseconds,
            "lost": self.lost,
            "gained": self.gained,
            "exits": [{"exit": k, **asdict(row)} for k, row in enumerate(self.exits, 1)],
            "classes": [{**asdict(row), "difference": row.difference} for row in self.classes],
        }


def _point_json(point: Point) -> dict[str, Any]:
    """A point of a curve; of how it was found what sets it apart from its neighbours."""
    how = {key: point.policy.found[key] for key in ("procedure", "p", "budget") if key in point.policy.found}
    figures = {"accuracy": point.accuracy, "operations": point.operations, "shares": list(point.shares)}
    return {**how, **figures, "thresholds": list(point.policy.thresholds)}


def dynamic(search: Record, test: Record, cost: Cost, policy_file: Path, measure: Measure) -> Dynamic:
    """Curves, and one policy in detail: that in `policy_file`, or one found here where that is none for this network.

    Args:
        search: Logits on the search half; thresholds are found here.
        test: Logits on the test set; all figures are of these images.
        policy_file: Where the run keeps its policy.
        measure: How confidence is read off logits, for all that is found here.

    Raises:
        UsageError: Records of other parts than these or of two networks.
    """
    published = budgeted(search, test, cost, measure=measure)
    first, last = cost.exits[0].operations, cost.exits[-1].operations
    budgets = [first + (last - first) * step / BUDGETS for step in range(1, BUDGETS + 1)]
    searched = curve(search_thresholds(search, cost, budgets, measure=measure), test, cost)
    point, certificate, note = _kept(policy_file, test, cost)
    source = None if point is None else policy_file.name
    if point is None:
        (point,) = curve([policy_for(search, cost, max_drop=MAX_DROP, measure=measure)], test, cost).points
    confidence_KS, labels_KS = point.policy.measure.over(test.logits_KSC, test.num_classes)
    exits_S = point.policy.exits(confidence_KS)
    answers_S = labels_KS.gather(0, exits_S[None]).squeeze(0)
    right_S, full_S = answers_S == test.targets_S, labels_KS[-1] == test.targets_S
    return Dynamic(
        published=published,
        searched=searched,
        point=point,
        certificate=certificate,
        source=source,
        note=note,
        search_images=len(search.targets_S),
        full_top1=_percent(full_S),
        full_operations=last,
        exits=exit_uses(point.policy.thresholds, exits_S, right_S, full_S),
        classes=_classes(exits_S, right_S, full_S, test),
        picked=_picked(exits_S, answers_S, confidence_KS, test),
    )


def _kept(path: Path, test: Record, cost: Cost) -> tuple[Point | None, Certificate | None, str | None]:
    """What the run's own policy does, and its certificate; where it cannot be used, why, for people to read."""
    if not path.is_file():
        return None, None, None
    try:
        policy = Policy.load(path)
        (point,) = curve([policy], test, cost).points
        if policy.found.get("times") is not None:
            check_times(policy.found["times"], policy.num_exits)
        return point, Certificate.of(policy), None
    except (UsageError, OfframpError) as error:
        return None, None, f"{path.name} was left aside. {error}"
    except (KeyError, TypeError) as error:
        return None, None, f"{path.name} was left aside. What it says of its origin is damaged: {error!r}."


def _percent(mask_S: Tensor) -> float:
    return 100 * mask_S.double().mean().item()


def exit_uses(thresholds: Sequence[float], exits_S: Tensor, right_S: Tensor, full_S: Tensor) -> tuple[ExitUse, ...]:
    """What happens at each exit, given the one that each image takes (from 0), and whether its answer there is right
    and the last exit's is (`full_S`)."""
    rows = []
    for k, threshold in enumerate(thresholds):
        here_S = exits_S == k
        images = int(here_S.sum())
        top1, full_top1 = (_percent(mask_S[here_S]) if images else None for mask_S in (right_S, full_S))
        rows.append(ExitUse(threshold, images, images / len(exits_S), top1, full_top1))
    return tuple(rows)


def leaves_from(threshold: float) -> str:
    """A threshold in few characters; one close below 1 is not rounded up to it."""
    return {NOBODY: "none", EVERYBODY: "all"}.get(threshold, f"{threshold:.6g}")


def _classes(exits_S: Tensor, right_S: Tensor, full_S: Tensor, test: Record) -> tuple[ClassUse, ...]:
    num_exits = len(test.logits_KSC)
    rows = []
    for label, name in enumerate(test.class_names):
        of_class_S = test.targets_S == label
        images = int(of_class_S.sum())
        right, full = right_S[of_class_S], full_S[of_class_S]
        top1, full_top1 = (_percent(mask) if images else None for mask in (right, full))
        left = exits_S[of_class_S].bincount(minlength=num_exits).tolist()
        shares = tuple(count / images for count in left) if images else ()
        lost, gained = int((full & ~right).sum()), int((right & ~full).sum())
        rows.append(ClassUse(name, images, top1, full_top1, lost, gained, shares))
    return tuple(rows)


def _picked(exits_S: Tensor, answers_S: Tensor, confidence_KS: Tensor, test: Record) -> tuple[tuple[Picked, ...], ...]:
    last = len(confidence_KS) - 1
    rows = []
    for k in range(last + 1):
        here = (exits_S == k).nonzero().squeeze(1)
        # Sorted stably, so that of equally sure images the first ones are shown, on every machine.
        doubt = -confidence_KS[k, here] if k < last else confidence_KS[:last, here].amax(0)
        chosen = here[torch.argsort(doubt, stable=True)[:SHOWN]]
        columns = (test.indices_S, test.targets_S, answers_S, confidence_KS[k])
        rows.append(tuple(Picked(*values) for values in zip(*(x[chosen].tolist() for x in columns), strict=True)))
    return tuple(rows)
