"""What thresholds do to a record, many policies at once, and the published way of finding them.

K exits, S images, J policies. Confidences `[K, S]` are those of a `Measure`; an image leaves at the first exit whose
confidence is at least its threshold, and the last exit takes every image that is left. Confidences here are numbers:
a record's logits are finite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.costs import Cost
from offramp.errors import UsageError
from offramp.evaluation.record import Record
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy

PUBLISHED_P = tuple(j / 20 for j in range(1, 40))  # the 39 points of the published curves


@dataclass(frozen=True, eq=False)
class Scores:
    """What thresholds need to know of a record under a measure.

    Attributes:
        operations_K: Of an image that leaves at each exit, with the heads of all exits up to it, as published.
        times_K: Milliseconds of an image that leaves at each exit, where they, not operations, are the cost.
    """

    confidence_KS: Tensor
    right_KS: Tensor
    operations_K: Tensor
    times_K: Tensor | None = None

    @property
    def cost_K(self) -> Tensor:  # noqa: N802
        """What an image costs that leaves at each exit: its milliseconds where they are known, else its operations."""
        return self.operations_K if self.times_K is None else self.times_K

    def thresholds(self, policies: Sequence[Policy]) -> Tensor:
        """The policies' thresholds `[J, K]`; policies of another number of exits are refused."""
        num_exits = len(self.confidence_KS)
        for policy in policies:
            if policy.num_exits != num_exits:
                raise UsageError(f"A policy is for {policy.num_exits} exits; the record is of {num_exits}.")
        return torch.tensor([policy.thresholds for policy in policies], dtype=self.confidence_KS.dtype)

    def replay(self, thresholds_JK: Tensor) -> tuple[Tensor, Tensor]:
        """How many images each policy takes at each exit `[J, K]`, and which it answers rightly: a mask `[J, S]`."""
        num_exits, num_images = self.confidence_KS.shape
        left_JS = torch.ones(len(thresholds_JK), num_images, dtype=torch.bool)
        right_JS = torch.zeros_like(left_JS)
        taken = []
        for k in range(num_exits):
            takes_JS = left_JS
            if k < num_exits - 1:
                takes_JS = left_JS & (self.confidence_KS[k] >= thresholds_JK[:, k, None])
            taken.append(count_true(takes_JS))
            right_JS |= takes_JS & self.right_KS[k]
            left_JS = left_JS & ~takes_JS
        return torch.stack(taken, 1), right_JS

    def operations(self, taken_JK: Tensor) -> Tensor:
        """Expected operations per image `[J]` (float64) of policies that take so many images at each exit."""
        return self._expected(self.operations_K, taken_JK)

    def spent(self, taken_JK: Tensor) -> Tensor:
        """Expected cost per image `[J]` (float64) of policies that take so many images at each exit: see `cost_K`."""
        return self._expected(self.cost_K, taken_JK)

    def _expected(self, of_exit_K: Tensor, taken_JK: Tensor) -> Tensor:
        return (taken_JK.double() @ of_exit_K) / self.confidence_KS.shape[1]


def count_true(mask_JS: Tensor) -> Tensor:
    """How many entries of each row are true `[J]` (int64). Numpy counts a mask as it lies, torch as numbers."""
    return torch.from_numpy(np.count_nonzero(mask_JS.numpy(), axis=1))


def share_true(mask_JS: Tensor) -> Tensor:
    """The share of each row's entries that are true `[J]` (float64)."""
    return count_true(mask_JS).double() / mask_JS.shape[1]


def scores(record: Record, cost: Cost, measure: Measure, times: Sequence[float] | None = None) -> Scores:
    """The scores of `record`; a cost or times (milliseconds of an image that leaves at each exit) of another number of
    exits are refused.
    """
    if len(cost.exits) != len(record.logits_KSC):
        raise UsageError(f"The cost is of {len(cost.exits)} exits, the record of {len(record.logits_KSC)}.")
    confidence_KS, labels_KS = record.read(measure)
    operations_K = torch.tensor([float(count.operations) for count in cost.exits], dtype=torch.float64)
    times_K = None
    if times is not None:
        check_times(times, len(cost.exits))
        times_K = torch.tensor(times, dtype=torch.float64)
    return Scores(confidence_KS, labels_KS == record.targets_S, operations_K, times_K)


def check_times(times: Sequence[float], num_exits: int) -> None:
    """Refuse what cannot be the milliseconds of an image that leaves at each exit: K positive numbers, none falling."""
    if len(times) != num_exits:
        raise UsageError(f"There are {len(times)} times for {num_exits} exits.")
    for k, time in enumerate(times):
        if not 0 < time < math.inf:
            raise UsageError(f"Times are milliseconds above 0; that of exit {k + 1} is {time!r}.")
        if k and time < times[k - 1]:
            raise UsageError(
                f"An image that leaves at exit {k + 1} takes {time:g} ms, less than the {times[k - 1]:g} ms of one "
                f"that leaves before it."
            )


def check_search(record: Record) -> None:
    """Refuse any part but `search` for what thresholds and temperatures are found on (docs/design.md)."""
    part = record.split.rpartition("/")[2]
    if part == "search":
        return
    reasons = {
        "train": "on images it was trained on a network is surer than it will be",
        "certify": "what touches `certify` cannot be certified on it afterwards",
        "test": "figures reported on the test set would be those of the images they were fitted to",
    }
    reason = reasons.get(part, "any other part has a use of its own")
    raise UsageError(
        f"Thresholds and temperatures are found on the `search` half of the held-out images, not on {record.split}: "
        f"{reason}. Record `val.search`; with holdout=0 there is none, so train with a holdout."
    )


def check_reported(record: Record, policies: Sequence[Policy]) -> None:
    """Refuse to report what policies do on images that were trained on or held out, or with another network."""
    if record.split.rpartition("/")[2] in ("train", "search", "certify"):
        raise UsageError(f"Figures of policies are reported on the test set, not on {record.split}.")
    for policy in policies:
        policy.check_network(record.weights)


def share_thresholds(confidence_KS: Tensor, shares_JK: Tensor) -> Tensor:
    """Thresholds `[J, K]` at which each exit takes its share of all images, as published.

    Exit k is given floor(S * share) images (product in single precision), the surest of those that no earlier exit
    took; its threshold is the confidence of the last of them, and images that reach it leave (ties included). An exit
    that is given none, or more than are left, takes none (`NOBODY`). The last exit takes all.
    """
    num_exits, num_images = confidence_KS.shape
    wanted_JK = (num_images * shares_JK.float()).floor().to(torch.int32)
    taken_JS = torch.zeros(len(shares_JK), num_images, dtype=torch.bool)
    thresholds_JK = torch.full((len(shares_JK), num_exits), EVERYBODY, dtype=confidence_KS.dtype)
    for k in range(num_exits - 1):
        sorted_S, order_S = confidence_KS[k].sort(descending=True)
        met_JS = (~taken_JS[:, order_S]).cumsum(1, dtype=torch.int32)
        wanted_J1 = wanted_JK[:, k, None].contiguous()
        place_J = torch.searchsorted(met_JS, wanted_J1).squeeze(1)  # of the first image that completes the share
        none_J = (wanted_J1.squeeze(1) == 0) | (place_J == num_images)
        thresholds_JK[:, k] = torch.where(none_J, NOBODY, sorted_S[place_J.clamp(max=num_images - 1)])
        taken_JS |= confidence_KS[k] >= thresholds_JK[:, k, None]
    return thresholds_JK


def policies(
    thresholds_JK: Tensor, seen: Scores, search: Record, measure: Measure, origins: Sequence[dict[str, Any]]
) -> tuple[Policy, ...]:
    """Policies that remember where their thresholds come from and what they do there."""
    taken_JK, right_JS = seen.replay(thresholds_JK)
    about = {"split": search.split, "fingerprint": search.fingerprint, "images": search.num_images}
    timed: list[dict[str, Any]] = [{}] * len(thresholds_JK)
    if seen.times_K is not None:
        times = seen.times_K.tolist()
        timed = [{"milliseconds": expected, "times": times} for expected in seen.spent(taken_JK).tolist()]
    rows = zip(
        thresholds_JK.tolist(),
        origins,
        (100 * share_true(right_JS)).tolist(),
        seen.operations(taken_JK).tolist(),
        timed,
        strict=True,
    )
    return tuple(
        Policy(
            tuple(row),
            measure,
            {**more, **about, "accuracy": accuracy, "operations": operations, **in_time},
            search.weights,
        )
        for row, more, accuracy, operations, in_time in rows
    )
