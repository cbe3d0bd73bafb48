"""What a finished run's early exits save under a promise: speed-up where accuracy drops by at most 0.2 points.

K exits, S images. Runs of the paper's tables hold no image out, so the test images are halved by their places: one half
gives the thresholds, the other the certificate, and then they change places. No accuracy is reported of these policies.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from offramp.costs import Cost, Count
from offramp.errors import OfframpError
from offramp.evaluation import Record, certify
from offramp.policy import Policy

DROP, CONFIDENCE = 0.2, 0.95  # points; of each certificate by itself


@dataclass(frozen=True)
class Certified:
    """What leaves early under certificates on both halves of the test images, by the mean over the halves.

    Attributes:
        drop: Points of accuracy that are lost against the last exit at most, with probability `confidence`.
        speed_up: Operations of the whole network, over those of an image under the policy: 1 where nothing can be
            certified. Counted, not timed.
        leaving: Share of images that is answered at each exit, K numbers.
    """

    drop: float
    confidence: float
    images: int
    speed_up: float
    leaving: tuple[float, ...]


def certified(record: Record, operations_K: Sequence[float]) -> Certified | None:
    """Of the test images' logits; None of a single exit, which nothing can leave early."""
    K, S = len(operations_K), record.num_images
    if K == 1 or S < 2:
        return None
    halves = [torch.arange(first, S, 2) for first in (0, 1)]
    counts = tuple(Count(int(operations), 0, 0) for operations in operations_K)
    cost = Cost(counts, counts, counts, counts, (1, 1, 1))  # only operations up to the exits are asked for
    left_K = torch.zeros(K, dtype=torch.float64)
    for search_S, certify_S in (halves, halves[::-1]):
        tested = _part(record, certify_S, "certify")
        policy = _policy(_part(record, search_S, "search"), tested, cost)
        if policy is None:
            left_K[-1] += len(certify_S)
        else:
            exits_S = policy.exits(tested.read(policy.measure)[0])
            left_K += exits_S.bincount(minlength=K)
    leaving_K = (left_K / S).tolist()
    mean = sum(share * operations for share, operations in zip(leaving_K, operations_K, strict=True))
    return Certified(DROP, CONFIDENCE, S, operations_K[-1] / mean, tuple(leaving_K))


def _policy(search: Record, tested: Record, cost: Cost) -> Policy | None:
    try:
        return certify(search, tested, cost, risk=DROP / 100, confidence=CONFIDENCE, loss="drop")
    except OfframpError:  # no candidate that lets an image leave keeps the promise
        return None


def _part(record: Record, here_S: torch.Tensor, name: str) -> Record:
    return dataclasses.replace(
        record,
        logits_KSC=record.logits_KSC[:, here_S],
        targets_S=record.targets_S[here_S],
        indices_S=record.indices_S[here_S],
        split=f"{record.split}/{name}",
        fingerprint=f"{record.fingerprint}/{name}",
    )
