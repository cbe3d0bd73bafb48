import itertools

import numpy as np
import pytest

from offramp.certificate import LOSSES, Promise
from offramp.errors import UsageError
from offramp.evaluation.bounds import binomial_p_value, lower_limit
from offramp.evaluation.promises import (
    LossCounts,
    bets,
    cheapest_kept,
    events,
    images_needed,
    learn_then_test,
    p_values,
)


def tally(lost, counted, gained=0) -> LossCounts:
    lost = np.asarray(lost)
    return LossCounts(lost, np.broadcast_to(gained, lost.shape), np.broadcast_to(counted, lost.shape))


@pytest.mark.parametrize("loss", ["regret", "early-error"])
def test_below_299_images_nothing_can_be_certified_at_1_percent_and_95_percent(loss):
    assert images_needed(Promise(0.01, 0.95, loss)) == 299


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("risk", "confidence"), [(0.01, 0.95), (0.05, 0.9), (0.2, 0.999), (0.9, 0.5)])
def test_images_needed_are_enough_and_one_less_is_not(loss, risk, confidence):
    promise = Promise(risk, confidence, loss)
    needed = images_needed(promise)
    before_and_now = [float(p_values(promise, tally(0, n), tally(0, n))) for n in (needed - 1, needed)]
    assert before_and_now[0] > promise.level >= before_and_now[1]


@pytest.mark.parametrize("wrong", [{"risk": 0}, {"risk": 1.0}, {"confidence": 95}, {"loss": "accuracy"}])
def test_what_cannot_be_promised_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Promise(**wrong)


def test_losses_say_what_happens_to_an_image():
    """left, right, full -> lost, gained, counted"""
    expected = {
        "regret": {(1, 0, 1): (1, 0, 1)},
        "drop": {(1, 0, 1): (1, 0, 1), (1, 1, 0): (0, 1, 1)},
        "early-error": {(1, 0, 0): (1, 0, 1), (1, 0, 1): (1, 0, 1), (1, 1, 0): (0, 0, 1), (1, 1, 1): (0, 0, 1)},
    }
    for loss, image in itertools.product(LOSSES, itertools.product((0, 1), repeat=3)):
        happens = events(loss, *(np.array([value], dtype=bool) for value in image))
        otherwise = (0, 0, int(loss != "early-error"))
        assert tuple(int(mask[0]) for mask in happens) == expected[loss].get(image, otherwise), (loss, image)


def test_the_drop_is_the_accuracy_lost_and_regret_is_never_less():
    rng = np.random.default_rng(0)
    left, right, full = rng.random((3, 500)) < 0.5
    right = np.where(left, right, full)  # who does not leave early gets the full network's answer
    drop, regret = (
        LossCounts(*(mask.sum() for mask in events(loss, left, right, full))).risk for loss in ("drop", "regret")
    )
    assert drop == pytest.approx(full.mean() - right.mean())
    assert regret >= drop


def slow_cheapest(p_values, start, level):
    chosen = -1
    for j in range(start, len(p_values)):
        if not p_values[j] <= level:
            break
        chosen = j
    return chosen


def test_testing_stops_at_the_first_failure():
    rng = np.random.default_rng(0)
    p_values = rng.random((300, 9)) ** 3
    p_values[rng.random((300, 9)) < 0.02] = np.nan
    start = rng.integers(0, 9, 300)
    expected = [slow_cheapest(row, first, 0.2) for row, first in zip(p_values, start, strict=True)]
    assert cheapest_kept(p_values, start, 0.2).tolist() == expected
    assert len(set(expected)) == 10


@pytest.mark.parametrize(
    ("p_values", "chosen"),
    [
        ([0.01, 0.02, 0.2, 0.01], 1),  # the last that passed: neither the first that failed nor a later one
        ([0.2, 0.0, 0.0, 0.0], -1),
        ([0.0, 0.0, 0.0, 0.05], 3),
        ([np.nan, 0.0, 0.0, 0.0], -1),
    ],
)
def test_the_last_that_passed_is_chosen(p_values, chosen):
    assert cheapest_kept(np.array(p_values), np.array(0), 0.05) == chosen


def test_many_candidates_break_no_more_promises_than_one():
    """100 independent candidates, all bad: fixed-sequence testing keeps the level, taking any that passes does not."""
    p_values = np.random.default_rng(0).random((20_000, 100))
    broken = int((cheapest_kept(p_values, np.zeros(20_000, dtype=int), 0.05) >= 0).sum())
    assert lower_limit(broken, 20_000, 0.999) <= 0.05
    assert (p_values <= 0.05).any(1).mean() > 0.9


def test_testing_starts_where_search_speaks_most_for_a_candidate():
    """Early error: the first candidates let too few images go for anything to be said of them."""
    promise = Promise(0.05, 0.9, "early-error")
    search = certify = tally([0, 1, 2, 30, 80], [5, 30, 200, 1000, 1000])
    assert p_values(promise, certify, search)[0] > promise.level
    assert learn_then_test(promise, search, certify) == 3


def test_lucky_gains_on_search_do_not_set_the_start():
    """Of many candidates the one with the most gains on search is lucky: elsewhere it may fail, the cautious do not."""
    promise = Promise(0.02, 0.9, "drop")
    search = tally([10, 30, 40], 2000, gained=[0, 30, 160])
    certify = tally([12, 35, 80], 2000, gained=[0, 33, 60])
    assert p_values(promise, search, search).argmin() == 2
    assert p_values(promise, certify, search)[2] > promise.level
    assert learn_then_test(promise, search, certify) == 1


def test_the_joint_promise_is_kept_when_each_class_keeps_it():
    promise = Promise(0.1, 0.9)
    lost = np.array([[0, 1, 2, 3], [0, 9, 1, 1]])  # [classes, candidates]
    certify = tally(lost, [[100], [150]])
    each_keeps = binomial_p_value(lost, [[100], [150]], 0.1) <= promise.level
    assert each_keeps.tolist() == [[True] * 4, [True] * 4]
    assert learn_then_test(promise, certify, certify, axis=0) == 3
    certify = tally([[0, 1, 2, 3], [0, 14, 1, 1]], [[100], [150]])
    assert learn_then_test(promise, certify, certify, axis=0) == 0


def test_a_joint_promise_over_classes_is_broken_no_more_often_than_allowed():
    """One class at the edge, the others safe: the largest p-value needs no correction for their number."""
    rng = np.random.default_rng(0)
    risks = np.array([0.1, 0.01, 0.01, 0.001])[:, None, None]
    lost = rng.binomial(300, np.broadcast_to(risks, (4, 20_000, 1)))
    chosen = learn_then_test(Promise(0.1, 0.9), tally(lost, 300), tally(lost, 300), axis=0)
    broken = int((chosen >= 0).sum())
    assert lower_limit(broken, 20_000, 0.999) <= 0.1
    assert broken > 1000


def test_a_drop_is_tested_by_what_search_favours():
    promise = Promise(0.01, 0.95, "drop")
    few, many = tally(8, 2500, gained=0), tally(40, 2500, gained=38)
    assert bets(promise, few).tolist() is False
    assert bets(promise, many).tolist() is True
    assert p_values(promise, few, few) == binomial_p_value(8, 2500, 0.01)
    assert p_values(promise, many, many) <= promise.level < binomial_p_value(40, 2500, 0.01)
    # The test is chosen without the certify images: where search misleads, it does not change its mind.
    assert p_values(promise, many, few) == binomial_p_value(40, 2500, 0.01)


def test_one_call_serves_many_calibration_sets():
    rng = np.random.default_rng(0)
    search, certify = (tally(rng.binomial(500, np.linspace(0, 0.06, 15), (50, 15)), 500) for _ in range(2))
    together = learn_then_test(Promise(0.03, 0.9), search, certify)
    one_by_one = [
        int(learn_then_test(Promise(0.03, 0.9), *(LossCounts(*(c[t] for c in sets)) for sets in (search, certify))))
        for t in range(50)
    ]
    assert together.tolist() == one_by_one
    assert len(set(one_by_one)) > 3
