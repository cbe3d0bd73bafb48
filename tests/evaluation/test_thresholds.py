"""Oracles of the original evaluators, and a slow loop that walks the images as they do."""

import dataclasses
import time

import pytest
import torch
from torch import Tensor

from offramp.costs import Cost, Count
from offramp.errors import UsageError
from offramp.evaluation.thresholds import (
    PUBLISHED_P,
    Scores,
    check_search,
    scores,
    share_thresholds,
)
from offramp.policy import EVERYBODY, NOBODY, SOFTMAX, Policy, geometric_shares

OPERATIONS = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)


def oracle(dtype: torch.dtype) -> Scores:
    """Three exits, eight images, two classes, all labels 0; the values of a run of the original MSDNet evaluator."""
    confidence_KS = torch.tensor(
        [
            [0.95, 0.90, 0.85, 0.80, 0.70, 0.65, 0.60, 0.55],
            [0.60, 0.97, 0.92, 0.88, 0.75, 0.91, 0.66, 0.58],
            [0.90] * 8,
        ],
        dtype=dtype,
    )
    answers_KS = torch.tensor([[0, 0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]])
    return Scores(confidence_KS, answers_KS == 0, OPERATIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shares", "thresholds", "accuracy", "operations"),
    [
        ((0.25, 0.375, 0.375), (0.90, 0.88), 87.5, 25.0),
        ((0.10, 0.10, 0.80), (NOBODY, NOBODY), 87.5, 40.0),
        ((0.50, 0.50, 0.0), (0.80, 0.58), 75.0, 15.0),
        ((0.60, 0.60, 0.0), (0.80, 0.58), 75.0, 15.0),
    ],
)
def test_the_originals_thresholds_accuracy_and_operations(dtype, shares, thresholds, accuracy, operations):
    seen = oracle(dtype)
    thresholds_JK = share_thresholds(seen.confidence_KS, torch.tensor([shares]))
    assert thresholds_JK.tolist() == [torch.tensor([*thresholds, EVERYBODY], dtype=dtype).tolist()]
    taken_JK, right_JS = seen.replay(thresholds_JK)
    assert 100 * right_JS.double().mean().item() == accuracy
    assert seen.operations(taken_JK).tolist() == [operations]


@pytest.mark.parametrize(
    ("p", "shares"),
    [
        (0.05, [0.95, 0.0475, 0.002375, 0.000119, 6e-6, 0, 0]),
        (0.75, [0.288512, 0.216384, 0.162288, 0.121716, 0.091287, 0.068465, 0.051349]),
        (1.95, [0.008944, 0.017442, 0.034011, 0.066322, 0.129327, 0.252188, 0.491766]),
    ],
)
def test_the_originals_shares(p, shares):
    assert geometric_shares([p], 7).squeeze(0).tolist() == pytest.approx(shares, abs=6e-7)


@pytest.mark.parametrize("num_exits", [21, 22, 33, 100])
def test_shares_of_many_exits_are_finite(num_exits):
    """64 to the power of 22 is more than single precision holds: the shares were nan, and everybody left at once."""
    p = [0.01, 1.0, 2.0, 8.0, 64.0]
    powers_JK = torch.tensor(p, dtype=torch.float64)[:, None] ** torch.arange(1, num_exits + 1)
    expected_JK = powers_JK / powers_JK.sum(1, keepdim=True)
    torch.testing.assert_close(geometric_shares(p, num_exits).double(), expected_JK, rtol=1e-4, atol=1e-7)


def test_shares_are_uniform_at_1_and_sum_to_1():
    shares_JK = geometric_shares(PUBLISHED_P, 5)
    assert shares_JK.dtype == torch.float32
    assert shares_JK[19].tolist() == pytest.approx([0.2] * 5, rel=1e-6)
    assert shares_JK.sum(1).tolist() == pytest.approx([1.0] * 39, rel=1e-6)
    assert (PUBLISHED_P[0], PUBLISHED_P[-1], len(PUBLISHED_P)) == (0.05, 1.95, 39)


def slow_thresholds(confidence_KS: Tensor, shares_K: Tensor) -> list[float]:
    """The walk of the originals: image by image in decreasing confidence, over those not taken yet."""
    K, S = confidence_KS.shape
    taken = [False] * S
    found = []
    for k in range(K - 1):
        wanted = int((torch.tensor(float(S), dtype=torch.float32) * shares_K[k]).floor())
        threshold, met = NOBODY, 0
        for i in confidence_KS[k].argsort(descending=True).tolist():
            if not taken[i]:
                met += 1
                if met == wanted:
                    threshold = confidence_KS[k, i].item()
                    break
        taken = [taken[i] or confidence_KS[k, i].item() >= threshold for i in range(S)]
        found.append(threshold)
    return [*found, EVERYBODY]


def slow_replay(seen: Scores, thresholds: list[float]) -> tuple[list[int], list[bool]]:
    K, S = seen.confidence_KS.shape
    taken, right = [0] * K, []
    for i in range(S):
        k = next(k for k in range(K) if k == K - 1 or seen.confidence_KS[k, i].item() >= thresholds[k])
        taken[k] += 1
        right.append(bool(seen.right_KS[k, i]))
    return taken, right


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_and_figures_equal_a_slow_loop(ties):
    confidence_KS = torch.rand(5, 257)
    if ties:
        confidence_KS = (confidence_KS * 12).round() / 12
    seen = Scores(confidence_KS, torch.rand(5, 257) < 0.7, torch.arange(1.0, 6.0, dtype=torch.float64))
    shares_JK = geometric_shares(PUBLISHED_P, 5)
    thresholds_JK = share_thresholds(confidence_KS, shares_JK)
    taken_JK, right_JS = seen.replay(thresholds_JK)
    for j in range(39):
        assert thresholds_JK[j].tolist() == slow_thresholds(confidence_KS, shares_JK[j])
        taken, right = slow_replay(seen, thresholds_JK[j].tolist())
        assert taken_JK[j].tolist() == taken
        assert right_JS[j].tolist() == right
    expected = [sum(n * (k + 1) for k, n in enumerate(row)) / 257 for row in taken_JK.tolist()]
    assert seen.operations(taken_JK).tolist() == pytest.approx(expected, rel=1e-12)


def test_replaying_equals_what_each_policy_chooses(make_record, make_cost):
    """Also for thresholds set by hand, which single precision does not hold exactly."""
    record = make_record(K=4)
    seen = scores(record, make_cost(1, 2, 3, 4), SOFTMAX)
    sets = [Policy((0.9, 0.7, 0.3, EVERYBODY)), Policy((NOBODY, 0.1, NOBODY, EVERYBODY)), Policy((0.5,) * 3 + (-1e8,))]
    taken_JK, right_JS = seen.replay(seen.thresholds(sets))
    for j, policy in enumerate(sets):
        choice = policy.choose(record.logits_KSC, record.num_classes)
        assert choice.exits_S.bincount(minlength=4).tolist() == taken_JK[j].tolist()
        assert torch.equal(choice.labels_S == record.targets_S, right_JS[j])


def test_one_exit_takes_everything():
    seen = Scores(torch.rand(1, 9), torch.rand(1, 9) < 0.5, torch.tensor([3.0], dtype=torch.float64))
    thresholds_JK = share_thresholds(seen.confidence_KS, geometric_shares(PUBLISHED_P, 1))
    assert thresholds_JK.unique().tolist() == [EVERYBODY]
    assert seen.operations(seen.replay(thresholds_JK)[0]).unique().tolist() == [3.0]


@pytest.mark.slow
def test_the_whole_curve_of_50000_images_takes_less_than_a_second():
    seen = Scores(torch.rand(5, 50_000), torch.rand(5, 50_000) < 0.8, torch.arange(1.0, 6.0, dtype=torch.float64))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        thresholds_JK = share_thresholds(seen.confidence_KS, geometric_shares(PUBLISHED_P, 5))
        taken_JK, _ = seen.replay(thresholds_JK)
        seconds.append(time.perf_counter() - start)
    assert taken_JK.sum(1).unique().tolist() == [50_000]
    assert min(seconds) < 1.0


def test_search_alone_may_be_fitted_to(make_record):
    check_search(dataclasses.replace(make_record(), split="digits/search"))
    for split, why in [
        ("digits/train", "trained on"),
        ("digits/certify", "cannot be certified"),
        ("digits/test", "reported on the test set"),
        ("digits", "a use of its own"),
        ("research", "a use of its own"),
    ]:
        with pytest.raises(UsageError, match=rf"not on {split}: .*{why}.*holdout=0"):
            check_search(dataclasses.replace(make_record(), split=split))


def test_a_p_that_is_not_above_0_is_refused():
    with pytest.raises(UsageError, match="above 0, not 0"):
        geometric_shares([0.5, 0.0], 3)


def test_a_cost_or_a_policy_of_another_number_of_exits_is_refused(make_record, make_cost):
    with pytest.raises(UsageError, match="cost is of 2 exits, the record of 3"):
        scores(make_record(K=3), make_cost(1, 2), SOFTMAX)
    seen = scores(make_record(K=3), make_cost(1, 2, 3), SOFTMAX)
    with pytest.raises(UsageError, match="policy is for 2 exits; the record is of 3"):
        seen.thresholds([Policy((0.5, EVERYBODY))])


def test_operations_are_those_with_the_heads_on_the_way(make_record):
    heads, alone = Count(7, 7, 1), Count(5, 5, 1)
    cost = Cost((heads,), (alone,), (alone,), (heads,), (1, 2, 2))
    assert scores(make_record(K=1), cost, SOFTMAX).operations_K.tolist() == [7.0]
