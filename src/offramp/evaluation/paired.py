"""Policies against rivals on the same images, at the same expected operations.

S images, J policies, R bootstrap replicates. Two policies found for one budget never spend quite the same on other
images, and a little more spent is a little more accuracy. So a policy is compared with the mixture of the two rivals
next to it, one cheaper and one dearer, that spends exactly what it spends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.costs import Cost
from offramp.errors import UsageError
from offramp.evaluation.record import Record
from offramp.evaluation.thresholds import check_reported, scores
from offramp.policy import Policy

REPLICATES = 1000
TOGETHER = 50  # replicates made at once: their weights for 50,000 images are 10 MB

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """A policy against rivals at its own expected operations.

    Attributes:
        operations: What both spend per image.
        accuracy: Of the policy, in percent; `rivals`: of the rivals, mixed to spend the same.
        low: The interval of the difference, in percentage points, is from here to `high`.
    """

    operations: float
    accuracy: float
    rivals: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Accuracy gained, in percentage points; negative where the policy loses."""
        return self.accuracy - self.rivals


def gains(
    policies: Sequence[Policy],
    rivals: Sequence[Policy],
    test: Record,
    cost: Cost,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[Gain, ...]:
    """Each policy's accuracy on `test` less that of `rivals` at the same expected operations, with a paired interval.

    The interval is a percentile bootstrap over images: accuracies, operations and the mixture are found anew in every
    replicate, so it holds the noise of both. It is over test images alone: the policies are taken as they are.

    Args:
        policies: What is to be judged.
        rivals: Policies of one family over a range of operations, such as `geometric_policies(search, cost, FAMILY)`.
        test: Images that neither side was found on.
        confidence: Of each interval by itself.

    Raises:
        UsageError: A policy that spends less than the cheapest rival or more than the dearest; a part that is held out
            or trained on.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie between 0 and 1, not {confidence!r}.")
    check_reported(test, [*policies, *rivals])
    both = [*policies, *rivals]
    right_JS, spent_JS = _per_image(both, test, cost)
    right_J, spent_J = right_JS.double().mean(1).numpy(), spent_JS.double().mean(1).numpy()
    split = len(policies)
    for spent in spent_J[:split]:
        if not spent_J[split:].min() <= spent <= spent_J[split:].max():
            raise UsageError(
                f"A policy spends {spent:,.0f} operations an image, the rivals {spent_J[split:].min():,.0f} to "
                f"{spent_J[split:].max():,.0f}: give rivals on both sides."
            )
    matched_J = _matched(right_J, spent_J, split)
    differences_RJ = np.stack(
        [
            right[:split] - _matched(right, spent, split)
            for right, spent in _resampled(right_JS, spent_JS, replicates, seed)
        ]
    )
    tail = (1 - confidence) / 2
    low_J, high_J = np.quantile(differences_RJ, [tail, 1 - tail], axis=0)
    columns = (spent_J[:split], 100 * right_J[:split], 100 * matched_J, 100 * low_J, 100 * high_J)
    return tuple(Gain(*map(float, row)) for row in zip(*columns, strict=True))


def _per_image(policies: Sequence[Policy], test: Record, cost: Cost) -> tuple[Tensor, Tensor]:
    """Whether each policy is right on each image, and what it spends there: float32 `[J, S]`."""
    known = {measure: scores(test, cost, measure) for measure in dict.fromkeys(policy.measure for policy in policies)}
    right, spent = [], []
    for policy in policies:
        seen = known[policy.measure]
        exits_S = policy.exits(seen.confidence_KS)
        right.append(seen.right_KS.gather(0, exits_S[None]).squeeze(0).float())
        spent.append(seen.operations_K.float()[exits_S])
    return torch.stack(right), torch.stack(spent)


def _matched(right_J: Figures, spent_J: Figures, split: int) -> Figures:
    """Accuracy of the rivals (from `split` on) at what each policy spends, on the line between neighbours."""
    order = np.argsort(spent_J[split:], kind="stable")
    matched: Figures = np.interp(spent_J[:split], spent_J[split:][order], right_J[split:][order])
    return matched


def _resampled(right_JS: Tensor, spent_JS: Tensor, replicates: int, seed: int) -> Iterator[tuple[Figures, Figures]]:
    """Mean accuracies and operations `[J]` of so many draws of S images with replacement."""
    num_images = right_JS.shape[1]
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, replicates, TOGETHER):
        size = min(TOGETHER, replicates - first)
        drawn_RS = torch.randint(num_images, (size, num_images), generator=generator)
        times_RS = torch.zeros(size, num_images).scatter_add_(1, drawn_RS, torch.ones(size, num_images)) / num_images
        yield from zip((times_RS @ right_JS.T).double().numpy(), (times_RS @ spent_JS.T).double().numpy(), strict=True)
