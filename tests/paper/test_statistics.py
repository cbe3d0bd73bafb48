import math

import numpy as np
import pytest
from scipy import stats

from offramp.paper.judging import CLOSE
from offramp.paper.statistics import (
    EQUIVALENCE,
    HALF_RANGE_OF_FIVE,
    Estimate,
    Ruling,
    above,
    against_published,
    all_above,
    all_of,
    below,
    both_signs,
    estimate,
    holm,
    p_value,
    sampling_error,
    within,
)


def test_the_interval_is_students() -> None:
    values = [0.3, 0.1, 0.5, 0.2, 0.9]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 4,000 studies of three seeds 95 % do; the share's standard error is 0.34 %."""
    draws = np.random.default_rng(0).normal(0.2, 0.4, (4000, 3))
    found = [estimate(list(values)) for values in draws]
    assert np.mean([f.low < 0.2 < f.high for f in found]) == pytest.approx(0.95, abs=0.011)


def test_one_seed_resolves_nothing() -> None:
    found = estimate([7.0])
    assert math.isinf(found.half)
    assert above(found) is Ruling.NOT_RESOLVED
    assert found.text() == "+7.00"


def test_verdicts_by_the_interval() -> None:
    found = Estimate(0.5, 0.3, 5)
    assert above(found) is Ruling.AGREES
    assert above(found, 0.4) is Ruling.NOT_RESOLVED
    assert above(found, 0.9) is Ruling.DISAGREES
    assert below(found, 0.9) is Ruling.AGREES
    assert below(found, 0.1) is Ruling.DISAGREES
    assert within(found, 0.9) is Ruling.AGREES
    assert within(found, 0.6) is Ruling.NOT_RESOLVED
    assert within(found, 0.1) is Ruling.DISAGREES
    assert within(Estimate(-0.5, 0.3, 5), 0.1) is Ruling.DISAGREES


def test_a_published_mean_of_five_runs_is_worth_five_of_ours() -> None:
    """As if the paper's five runs had been ours, with ours to tell the spread."""
    draws = np.random.default_rng(1).normal(70, 0.3, (4000, 10))
    inside = [abs((found := against_published(list(ten[:5]), ten[5:].mean(), 5)).mean) < found.half for ten in draws]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.011)
    assert against_published([70.0, 71.0], 70.0, 1).half > against_published([70.0, 71.0], 70.0, 5).half


def verdicts_of_printed_means(truth: float, runs: int, n: int = 5) -> dict[Ruling, float]:
    """How often each verdict comes, of 1,500 studies whose means over exits spread by 0.17 as the paper's do.

    `truth`: how far ours lie from the paper's. A spread is printed where the paper has several runs.
    """
    draws = np.random.default_rng(3).normal(70, 0.17, (1500, n + runs))
    found = [
        within(
            against_published(
                list(study[:n] + truth),
                study[n:].mean(),
                runs,
                deviation=study[n:].std(ddof=1) if runs > 1 else None,
                confidence=EQUIVALENCE,
            ),
            CLOSE,
        )
        for study in draws
    ]
    return {verdict: found.count(verdict) / len(found) for verdict in set(found)}


def test_a_perfect_reproduction_agrees_and_a_failed_one_does_not() -> None:
    """Five seeds against five printed runs are told; against a single one often not, and seldom wrongly."""
    agrees, disagrees = Ruling.AGREES, Ruling.DISAGREES
    five, one = verdicts_of_printed_means(0, 5), verdicts_of_printed_means(0, 1)
    assert (five[agrees], one[agrees]) == (pytest.approx(0.99, abs=0.01), pytest.approx(0.48, abs=0.04))
    assert {disagrees} & {*five, *one} == set()
    five, one = verdicts_of_printed_means(1.5, 5), verdicts_of_printed_means(1.5, 1)
    assert (five[disagrees], one[disagrees]) == (pytest.approx(1, abs=0.01), pytest.approx(0.99, abs=0.01))
    assert {agrees} & {*five, *one} == set()
    for runs in (5, 1):  # at the margin itself each verdict is wrong in one study of twenty at most
        at = verdicts_of_printed_means(CLOSE, runs)
        assert at[agrees] < 0.06
        assert at[disagrees] < 0.06


def test_a_printed_spread_is_pooled_with_ours() -> None:
    ours, theirs = [70.0, 70.3, 69.9], [70.1, 70.5, 70.2, 70.6, 70.0]
    found = against_published(ours, np.mean(theirs), 5, deviation=np.std(theirs, ddof=1))
    expected = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert math.isinf(against_published([70.0], 70.0, 5, deviation=0.2).half)  # a seed of ours resolves nothing


def test_half_the_range_of_five() -> None:
    draws = np.random.default_rng(4).normal(0, 1, (20_000, 5))
    assert np.ptp(draws, axis=1).mean() / 2 == pytest.approx(HALF_RANGE_OF_FIVE, abs=0.01)


def top1_differences(deviation: float, n: int, exits: int = 1, images: int = 10_000) -> np.ndarray:
    """[study, exit, seed]: of 8,000 studies without a true difference, in steps of a top-1 as runs give them."""
    draws = np.random.default_rng(6).normal(70, deviation / math.sqrt(2), (2, 8_000 // exits, exits, n))
    ours, theirs = np.round(draws * images / 100) * 100 / images
    return ours - theirs


@pytest.mark.parametrize("deviation", [0.002, 0.005, 0.01, 0.02, 0.05, 0.3])  # of a difference; steps are 0.01
@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_where_nothing_differs_steps_of_top1_feign_nothing(deviation: float, n: int) -> None:
    """Equal differences come by chance: with their own deviation, 0, they would say what is not so."""
    studies = top1_differences(deviation, n)[:, 0]
    verdicts = [above(estimate(list(values), images=10_000)) for values in studies]
    decided = 1 - verdicts.count(Ruling.NOT_RESOLVED) / len(verdicts)
    assert decided < 0.05 + 3 * 0.0024  # three standard errors
    if n == 2 and deviation == 0.01:
        equal = [values for values in studies.round(6) if np.ptp(values) == 0 and values[0] != 0]
        assert len(equal) / len(studies) > 0.1


@pytest.mark.parametrize("runs", [1, 5])
def test_nor_do_they_feign_a_reproduction(runs: int) -> None:
    """Two seeds a margin away from the printed mean, of one exit: one study of twenty at most agrees."""
    for deviation in (0.005, 0.02, 0.17):
        draws = np.random.default_rng(7).normal(70, deviation, (4000, 2 + runs)).round(2)
        verdicts = [
            within(
                against_published(
                    list(study[:2] + CLOSE), study[2:].mean(), runs, confidence=EQUIVALENCE, images=10_000
                ),
                CLOSE,
            )
            for study in draws
        ]
        assert verdicts.count(Ruling.AGREES) / len(verdicts) < 0.05 + 3 * 0.0035


@pytest.mark.parametrize("deviation", [0.005, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.02, 0.3))])
def test_nor_do_they_at_one_exit_of_seven(deviation: float) -> None:
    studies = top1_differences(deviation, 2, exits=7)
    mixed = [both_signs([list(values) for values in study], 10_000) for study in studies]
    assert mixed.count(Ruling.AGREES) / len(mixed) < 0.05
    all_gain = [all_above([list(values) for values in study], images=10_000) for study in studies]
    assert 1 - all_gain.count(Ruling.NOT_RESOLVED) / len(all_gain) < 0.05 + 3 * 0.0064


def test_no_interval_has_no_width() -> None:
    """Two seeds of -0.42: at least 42 images of 10,000, and as many more or fewer of others."""
    assert sampling_error(0, 10_000) == pytest.approx(0.01, rel=1e-3)  # an image
    least = sampling_error(-0.42, 10_000)
    assert least == pytest.approx(100 * math.sqrt(43 - 42**2 / 10_002) / 10_002)
    found = estimate([-0.42, -0.42], images=10_000)
    assert found.half == pytest.approx(stats.t.ppf(0.975, 1) * least / math.sqrt(2))
    assert above(found) is Ruling.NOT_RESOLVED
    assert estimate([-0.84, -0.84], images=10_000, unit=2).half == pytest.approx(2 * found.half)  # a sum of two exits
    assert math.isinf(estimate([-0.42, -0.42]).half)  # of what is no accuracy
    assert above(estimate([-0.42, -0.42])) is Ruling.NOT_RESOLVED
    assert estimate([0.1, 0.9], images=10_000) == estimate([0.1, 0.9])  # nothing changes where seeds differ by more
    assert math.isinf(against_published([70.0, 70.0], 70.3, 1).half)
    assert against_published([70.0, 70.0], 70.42, 1, images=10_000).half == pytest.approx(
        stats.t.ppf(0.975, 1) * sampling_error(0, 10_000) * math.sqrt(1.5)
    )


def test_both_signs_need_one_exit_above_and_one_below() -> None:
    up, down, noise = [1.0, 1.1, 0.9, 1.05], [-1.0, -1.1, -0.9, -1.05], [0.5, -0.5, 0.4, -0.6]
    assert both_signs([up, noise, down]) is Ruling.AGREES
    assert both_signs([up, up, up]) is Ruling.DISAGREES
    assert both_signs([up, noise, noise]) is Ruling.NOT_RESOLVED


def test_both_signs_are_seldom_seen_where_there_are_none() -> None:
    """Seven exits without any difference, five seeds: looking for the best of many must not find something."""
    draws = np.random.default_rng(2).normal(0, 1, (1000, 7, 5))
    verdicts = [both_signs([list(values) for values in study]) for study in draws]
    assert verdicts.count(Ruling.AGREES) < 20


def test_all_above_but_some() -> None:
    up, down, noise = [1.0, 1.1, 0.9, 1.05], [-1.0, -1.1, -0.9, -1.05], [0.5, -0.5, 0.4, -0.6]
    assert all_above([up, up, up]) is Ruling.AGREES
    assert all_above([up, noise, up]) is Ruling.NOT_RESOLVED
    assert all_above([up, noise, up], but=1) is Ruling.AGREES
    assert all_above([up, noise, noise], but=1) is Ruling.NOT_RESOLVED
    assert all_above([up, down, noise]) is Ruling.DISAGREES
    assert all_above([up, down, noise], but=1) is Ruling.NOT_RESOLVED
    assert all_above([up, down, down], but=1) is Ruling.DISAGREES


def test_a_loss_at_one_exit_is_seldom_seen_where_there_is_none() -> None:
    draws = np.random.default_rng(5).normal(0, 1, (400, 7, 5))
    verdicts = [all_above([list(values) for values in study]) for study in draws]
    assert verdicts.count(Ruling.DISAGREES) < 20  # 10 expected
    assert verdicts.count(Ruling.AGREES) == 0


def test_what_is_no_number_resolves_nothing() -> None:
    found = estimate([1.0, math.nan, 2.0])
    assert math.isnan(found.mean)
    assert (above(found), below(found, 1), within(found, 1)) == (Ruling.NOT_RESOLVED,) * 3


def test_a_claim_of_several_parts() -> None:
    agrees, fails, open_, not_run = (Ruling.AGREES, Ruling.DISAGREES, Ruling.NOT_RESOLVED, Ruling.NOT_RUN)
    assert all_of([agrees, agrees]) is agrees
    assert all_of([agrees, open_]) is open_
    assert all_of([open_, fails]) is fails
    assert all_of([fails, not_run]) is not_run


def test_p_values_are_scipys_and_holms_is_the_textbooks() -> None:
    values = [0.3, 0.1, 0.4, -0.1, 0.2]
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value([0.3]) == 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
