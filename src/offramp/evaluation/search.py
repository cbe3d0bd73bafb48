"""A search over thresholds: for each budget, higher accuracy on `search` than geometric shares can give.

K exits, S images, J policies. Geometric shares are one parameter for K - 1 thresholds and know neither what an exit
costs nor what it adds. Here operations have a price, in accuracy for a whole network's operations, and thresholds are
moved one at a time to where right answers less the price of the operations are most. One threshold's best place, given
the others, is found exactly, in one pass over the images in order of confidence. Each price gives a policy; between
neighbours lie more. Which of them is taken for a budget, and how it is kept from fitting chance: `choose_within`.
Milliseconds, where they were measured, take the place of operations: what an exit costs is one vector, `Scores.cost_K`.

Thresholds are handled as ranks `[J, K - 1]`: exit k takes the `rank` surest of all images (of those that reach it).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.checks import check_size
from offramp.costs import Cost
from offramp.errors import UsageError
from offramp.evaluation.bounds import paired_difference
from offramp.evaluation.record import Record
from offramp.evaluation.thresholds import (
    PUBLISHED_P,
    Scores,
    check_search,
    check_times,
    policies,
    scores,
    share_thresholds,
    share_true,
)
from offramp.policy import EVERYBODY, NOBODY, SOFTMAX, Measure, Policy, geometric_shares

PRICES = 40
LEAST_GAP = 1e-3  # of the whole network's cost; prices at which less than that decides are not tried
BETWEEN = 8  # steps from one price's thresholds to the next
ROUNDS, SWEEPS = 5, 50  # both end as soon as nothing moves
CAUTION = 1.0  # standard errors by which a find must beat what it is to replace

# The published 39, and on to where nearly every image leaves at the first exit or stays to the last.
FAMILY = (*PUBLISHED_P, *(2.0 ** (j / 16) for j in range(-96, 97)))


def search_thresholds(
    search: Record,
    cost: Cost,
    budgets: Sequence[float],
    *,
    times: Sequence[float] | None = None,
    measure: Measure = SOFTMAX,
    caution: float = CAUTION,
) -> tuple[Policy, ...]:
    """For each budget the best policy found on `search` that keeps it there.

    On `search` none is less accurate than the best of `FAMILY`, the geometric shares, within the same budget. What is
    found replaces that one only where it is more accurate by more than `caution` standard errors of the paired
    difference; 0 takes whatever is best on `search`, which for a few hundred images is often chance.

    Args:
        search: Logits on the search half.
        budgets: Expected operations per image; a share of the whole network's where 1 or less. With `times`, expected
            milliseconds per image.
        times: Milliseconds of an image that leaves at each exit, as measured: K positive numbers, none falling.

    Raises:
        UsageError: A record of another part, a budget that not even the first exit alone keeps, times that cannot be.
    """
    check_size("caution", caution)
    if times is None:
        name, wanted = "budget", [in_operations(budget, cost) for budget in budgets]
    else:
        check_times(times, len(cost.exits))
        name, wanted = "latency", [in_milliseconds(latency, times) for latency in budgets]
    tried = candidates(search, cost, measure, times)
    chosen = [tried.choose_within(limit, caution) for limit in wanted]
    how = [{**tried.how(j), name: limit, "caution": caution} for j, limit in zip(chosen, wanted, strict=True)]
    return policies(tried.thresholds_JK[chosen], tried.seen, search, measure, how)


def in_operations(budget: float, cost: Cost) -> float:
    """A budget in operations per image; up to 1 it is a share of the whole network's."""
    whole, least = cost.exits[-1].operations, cost.exits[0].operations
    check_size("budget", budget)
    operations = budget * whole if budget <= 1 else float(budget)
    if operations < least:
        raise UsageError(
            f"A budget of {operations:,.0f} operations an image cannot be kept: the first exit alone takes {least:,} "
            f"({least / whole:.3f} of the whole network)."
        )
    return operations


def in_milliseconds(latency: float, times: Sequence[float]) -> float:
    """A latency in expected milliseconds per image that can be kept, given the times of the exits."""
    check_size("latency", latency)
    if latency < times[0]:
        raise UsageError(
            f"A latency of {latency:g} ms an image cannot be kept: the first exit alone takes {times[0]:g} ms "
            f"(the whole network {times[-1]:g} ms)."
        )
    return float(latency)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Policies on `search`: geometric shares (with p = 0, the first exit alone, and p = infinity), then what was found.

    Attributes:
        right_JS: Which images each policy answers rightly.
        spent_J: Expected cost per image, in operations or milliseconds: see `Scores.cost_K`.
        num_geometric: How many of them, from the first, are geometric.
    """

    seen: Scores
    thresholds_JK: Tensor
    right_JS: Tensor
    spent_J: Tensor
    num_geometric: int

    def how(self, j: int) -> dict[str, Any]:
        """How policy j was found, and what was counted as its cost, as JSON values."""
        price = {"price": "operations" if self.seen.times_K is None else "milliseconds"}
        if j >= self.num_geometric:
            return {"procedure": "search", **price}
        if j in (0, self.num_geometric - 1):
            return {"procedure": "first exit alone" if j == 0 else "last exit alone", **price}
        return {"procedure": "geometric shares", "p": FAMILY[j - 1], **price}

    def choose_within(self, budget: float, caution: float) -> int:
        """The policy to take among those within a budget: see `search_thresholds`."""
        accuracy_J = share_true(self.right_JS).masked_fill(self.spent_J > budget * (1 + 1e-12), -1.0)  # rounding
        rival = int(accuracy_J[: self.num_geometric].argmax())
        gain_J = accuracy_J - accuracy_J[rival]
        score_J = gain_J - caution * self.standard_error(self.right_JS[rival])
        score_J[: self.num_geometric] = -1.0
        best = int(score_J.argmax())
        return best if score_J[best] > 0 else rival

    def choose_cheapest(self, max_drop: float, caution: float) -> int:
        """The cheapest policy that loses at most `max_drop` percentage points against the last exit.

        The drop is taken to be larger than seen by `caution` standard errors of the paired difference: with few images
        that is more than a small `max_drop`, whatever was seen. The last exit alone loses nothing against itself.
        """
        last_S = self.seen.right_KS[-1]
        drop_J = last_S.double().mean() - share_true(self.right_JS) + caution * self.standard_error(last_S)
        fits_J = 100 * drop_J <= max_drop + 1e-9  # rounding: a drop of exactly the maximum is allowed
        fits_J[self.num_geometric - 1] = True
        return int(self.spent_J.masked_fill(~fits_J, torch.inf).argmin())

    def standard_error(self, right_S: Tensor) -> Tensor:
        """Standard error `[J]` of each policy's accuracy (in [0, 1]) less that of the given right answers; never 0."""
        lost_J, gained_J = ((right_S & ~self.right_JS).sum(1), (self.right_JS & ~right_S).sum(1))
        return torch.from_numpy(paired_difference(lost_J.numpy(), gained_J.numpy(), len(right_S))[1])


def candidates(search: Record, cost: Cost, measure: Measure, times: Sequence[float] | None = None) -> Candidates:
    """Geometric shares, the best thresholds at each price, and steps between neighbours among these."""
    check_search(search)
    seen = scores(search, cost, measure, times)
    num_exits = len(seen.confidence_KS)
    geometric_JK = share_thresholds(seen.confidence_KS, geometric_shares(FAMILY, num_exits))
    ends_JK = torch.tensor([[EVERYBODY] * num_exits, [NOBODY] * (num_exits - 1) + [EVERYBODY]]).to(geometric_JK)
    geometric_JK = torch.cat([ends_JK[:1], geometric_JK, ends_JK[1:]])  # p = 0 and p = infinity
    thresholds_JK = geometric_JK
    if num_exits > 1:
        ranking = Ranking.of(seen.confidence_KS)
        best_JK = best_at_prices(seen, ranking, ranking.ranks(geometric_JK))
        thresholds_JK = torch.cat([geometric_JK, ranking.thresholds(steps_between(seen, ranking, best_JK))])
    taken_JK, right_JS = seen.replay(thresholds_JK)
    return Candidates(seen, thresholds_JK, right_JS, seen.spent(taken_JK), len(geometric_JK))


@dataclass(frozen=True, eq=False)
class Ranking:
    """The images in order of falling confidence, at each exit but the last.

    Attributes:
        sorted_KS: Confidences in that order.
        order_KS: The images in that order.
        can_cut_KR: Whether exit k can take just the first r images, r = 0...S: no tie is divided.
    """

    sorted_KS: Tensor
    order_KS: Tensor
    can_cut_KR: Tensor

    @classmethod
    def of(cls, confidence_KS: Tensor) -> "Ranking":
        """The ranking by these confidences."""
        sorted_KS, order_KS = confidence_KS[:-1].sort(dim=1, descending=True)
        ends_K1 = torch.ones(len(sorted_KS), 1, dtype=torch.bool)
        return cls(sorted_KS, order_KS, torch.cat([ends_K1, sorted_KS[:, 1:] != sorted_KS[:, :-1], ends_K1], 1))

    def thresholds(self, ranks_JK: Tensor) -> Tensor:
        """Thresholds `[J, K]` for ranks: the confidence of the last image taken."""
        ranks_KJ, everybody = ranks_JK.T, self.sorted_KS.shape[1]
        last_KJ = self.sorted_KS.gather(1, (ranks_KJ - 1).clamp(min=0))
        last_KJ = last_KJ.masked_fill(ranks_KJ == 0, NOBODY).masked_fill(ranks_KJ == everybody, EVERYBODY)
        return torch.nn.functional.pad(last_KJ.T, (0, 1), value=EVERYBODY)

    def ranks(self, thresholds_JK: Tensor) -> Tensor:
        """The inverse: how many images reach each threshold but the last."""
        rising_KS = self.sorted_KS.flip(1)
        return rising_KS.shape[1] - torch.searchsorted(rising_KS, thresholds_JK[:, :-1].T.contiguous()).T


def best_at_prices(seen: Scores, ranking: Ranking, start_JK: Tensor) -> Tensor:
    """Ranks found at each of `PRICES` prices, from the best of the starts there, then of all prices' finds."""
    share_K = seen.cost_K / seen.cost_K[-1]
    num_images = seen.confidence_KS.shape[1]
    # From where a right answer does not pay for the next exit, to where one pays for the whole network on all images.
    highest, lowest = 1 / min((gap for gap in share_K.diff().tolist() if gap > LEAST_GAP), default=1.0), 1 / num_images
    prices_P = torch.logspace(0, 1, PRICES, base=lowest / highest, dtype=torch.float64) * highest
    ranks_PK = start_JK
    for _ in range(ROUNDS):
        taken_JK, right_JS = seen.replay(ranking.thresholds(ranks_PK))
        spent_J = (taken_JK.double() @ share_K) / num_images
        value_PJ = share_true(right_JS) - prices_P[:, None] * spent_J
        best_P = value_PJ.argmax(1)
        if len(ranks_PK) == PRICES and torch.equal(value_PJ.diagonal(), value_PJ.amax(1)):
            break
        ranks_PK = ascend(seen, ranking, ranks_PK[best_P], prices_P[:, None] * share_K)
    return ranks_PK


def ascend(seen: Scores, ranking: Ranking, ranks_JK: Tensor, price_JK: Tensor) -> Tensor:
    """Move one exit's rank at a time to its best place, given the others', until none moves.

    `price_JK` is what leaving at each exit costs in units of a right answer. Right answers less prices never fall.
    """
    ranks_JK = ranks_JK.clone()
    num_early, num_images = ranking.order_KS.shape
    place_KS = ranking.order_KS.argsort(1)
    for _ in range(SWEEPS):
        before_JK = ranks_JK.clone()
        reach_KJS = [torch.ones(len(ranks_JK), num_images, dtype=torch.bool)]
        for k in range(num_early - 1):
            reach_KJS.append(reach_KJS[-1] & (place_KS[k] >= ranks_JK[:, k, None]))
        later_JS = seen.right_KS[-1].double() - price_JK[:, -1:]  # what an image is worth that goes on
        for k in reversed(range(num_early)):
            here_JS = seen.right_KS[k].double() - price_JK[:, k, None]
            gain_JS = torch.where(reach_KJS[k], here_JS - later_JS, 0.0)
            total_JR = torch.nn.functional.pad(gain_JS[:, ranking.order_KS[k]].cumsum(1), (1, 0))
            total_JR.masked_fill_(~ranking.can_cut_KR[k], -torch.inf)
            # Of equally good places the last: images that left before lie between them, and the end is "everybody".
            best_J = num_images - total_JR.flip(1).argmax(1)
            now_J1 = ranks_JK[:, k, None]
            better_J = total_JR.gather(1, best_J[:, None]) > total_JR.gather(1, now_J1) + 1e-9
            ranks_JK[:, k] = torch.where(better_J.squeeze(1), best_J, ranks_JK[:, k])
            later_JS = torch.where(place_KS[k] < ranks_JK[:, k, None], here_JS, later_JS)
        if torch.equal(ranks_JK, before_JK):
            break
    return ranks_JK


def steps_between(seen: Scores, ranking: Ranking, ranks_JK: Tensor) -> Tensor:
    """The ranks, in order of what they spend, and steps from each to the next: prices skip what lies in a hollow."""
    ends_JK = torch.stack([torch.full_like(ranks_JK[0], ranking.order_KS.shape[1]), torch.zeros_like(ranks_JK[0])])
    ranks_JK = _distinct(torch.cat([ranks_JK, ends_JK]))
    taken_JK, _ = seen.replay(ranking.thresholds(ranks_JK))
    ranks_JK = ranks_JK[seen.spent(taken_JK).argsort(stable=True)]
    steps = [
        before_K + ((after_K - before_K) * step / BETWEEN).round().long()
        for before_K, after_K in itertools.pairwise(ranks_JK)
        for step in range(BETWEEN)
    ]
    return _distinct(torch.stack([*steps, ranks_JK[-1]]))


def _distinct(ranks_JK: Tensor) -> Tensor:
    return torch.tensor(list(dict.fromkeys(map(tuple, ranks_JK.tolist()))))
