import dataclasses

import pytest
import torch

from offramp.errors import UsageError
from offramp.evaluation.budgeted import curve
from offramp.evaluation.paired import gains
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy

CHEAP, MIDDLE, DEAR = (Policy((t, EVERYBODY)) for t in (0.4, 0.7, 0.95))


@pytest.fixture
def judged(make_record):
    record = make_record(K=2, N=4, S=3000)
    own = torch.nn.functional.one_hot(record.targets_S, record.logits_KSC.shape[-1])
    record.logits_KSC.add_(own * torch.tensor([2.0, 5.0])[:, None, None] * 2 * torch.rand(3000, 1))
    return record


def test_a_policy_against_itself_gains_nothing(judged, make_cost):
    gain = gains([MIDDLE], [CHEAP, MIDDLE, DEAR], judged, make_cost(10, 40))[0]
    assert gain.difference == gain.low == gain.high == 0


def test_rivals_are_mixed_to_spend_the_same(judged, make_cost):
    cost = make_cost(10, 40)
    gain = gains([MIDDLE], [DEAR, CHEAP], judged, cost)[0]
    own, cheap, dear = curve([MIDDLE, CHEAP, DEAR], judged, cost).points
    share = (own.operations - cheap.operations) / (dear.operations - cheap.operations)
    assert 0.1 < share < 0.9
    assert gain.operations == pytest.approx(own.operations, rel=1e-6)
    assert gain.accuracy == pytest.approx(own.accuracy, rel=1e-9)
    assert gain.rivals == pytest.approx((1 - share) * cheap.accuracy + share * dear.accuracy, rel=1e-6)
    assert gain.difference == gain.accuracy - gain.rivals


def test_the_interval_is_that_of_the_paired_differences(judged, make_cost):
    """By the delta method: accuracy gained, less what the operations differ by times accuracy per operation."""
    policies, operations_K = (MIDDLE, CHEAP, DEAR), torch.tensor([10.0, 40.0], dtype=torch.float64)
    right, spent = [], []
    for policy in policies:
        choice = policy.choose(judged.logits_KSC, 4)
        right.append((choice.labels_S == judged.targets_S).double())
        spent.append(operations_K[choice.exits_S])
    mean = [values.mean() for values in spent]
    share = (mean[0] - mean[1]) / (mean[2] - mean[1])
    slope = (right[2].mean() - right[1].mean()) / (mean[2] - mean[1])
    mixed_right = (1 - share) * right[1] + share * right[2]
    mixed_spent = (1 - share) * spent[1] + share * spent[2]
    each_S = right[0] - mixed_right - slope * (spent[0] - mixed_spent)
    error = 100 * each_S.std().item() / 3000**0.5
    gain = gains([MIDDLE], [CHEAP, DEAR], judged, make_cost(10, 40), replicates=4000)[0]
    assert gain.difference == pytest.approx(100 * each_S.mean().item(), abs=1e-5)
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert (gain.high + gain.low) / 2 == pytest.approx(gain.difference, abs=0.2 * error)


def test_less_confidence_is_a_narrower_interval_and_seeds_repeat(judged, make_cost):
    arguments = ([MIDDLE], [CHEAP, DEAR], judged, make_cost(10, 40))
    wide, narrow = (gains(*arguments, confidence=confidence)[0] for confidence in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert gains(*arguments) == gains(*arguments)
    assert gains(*arguments) != gains(*arguments, seed=1)


def test_policies_of_other_measures_are_compared(judged, make_cost):
    ends = [Policy((EVERYBODY, EVERYBODY)), CHEAP, DEAR, Policy((NOBODY, EVERYBODY))]
    first, second = gains([Policy((-0.5, EVERYBODY), Measure("entropy")), MIDDLE], ends, judged, make_cost(10, 40))
    assert first.operations != second.operations
    assert second == dataclasses.replace(second, accuracy=100 * accuracy(MIDDLE, judged))


def accuracy(policy, record):
    labels_S = policy.choose(record.logits_KSC, record.num_classes).labels_S
    return (labels_S == record.targets_S).double().mean().item()


def test_rivals_that_do_not_reach_are_refused(judged, make_cost):
    for rivals in ([CHEAP], [DEAR]):
        with pytest.raises(UsageError, match="rivals on both sides"):
            gains([MIDDLE], rivals, judged, make_cost(10, 40))


def test_what_cannot_be_is_refused(judged, make_cost):
    with pytest.raises(UsageError, match="between 0 and 1, not 95"):
        gains([MIDDLE], [CHEAP, DEAR], judged, make_cost(10, 40), confidence=95)
    held_out = dataclasses.replace(judged, split="made-up/search")
    with pytest.raises(UsageError, match="not on made-up/search"):
        gains([MIDDLE], [CHEAP, DEAR], held_out, make_cost(10, 40))
    other = dataclasses.replace(MIDDLE, network="another")
    with pytest.raises(UsageError, match="found for the network"):
        gains([other], [CHEAP, DEAR], judged, make_cost(10, 40))
