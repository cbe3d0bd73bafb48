import math
from fractions import Fraction

import numpy as np
import pytest

from offramp.evaluation.bounds import best_bet, betting_p_value, binomial_p_value, lower_limit, upper_limit


def trinomial(n: int, up: float, down: float) -> list[tuple[int, int, float]]:
    """Every outcome (times 1, times -1) of n images, and its probability."""
    return [
        (a, b, math.comb(n, a) * math.comb(n - a, b) * up**a * down**b * (1 - up - down) ** (n - a - b))
        for a in range(n + 1)
        for b in range(n + 1 - a)
    ]


def worst_excess(p_values: np.ndarray, chances: np.ndarray) -> float:
    """The most by which P(p <= u) is above u, over all u."""
    order = p_values.argsort(kind="stable")
    p_values, below = p_values[order], chances[order].cumsum()
    last_of_ties = np.append(p_values[1:] > p_values[:-1], True)
    return float((below - p_values)[last_of_ties].max())


@pytest.mark.parametrize(("lost", "images", "risk"), [(0, 5, 0.5), (3, 40, 0.125), (16, 300, 0.0625), (7, 7, 0.25)])
def test_the_binomial_p_value_is_the_exact_tail(lost, images, risk):
    r = Fraction(risk)
    tail = sum(math.comb(images, i) * r**i * (1 - r) ** (images - i) for i in range(lost + 1))
    assert binomial_p_value(lost, images, risk) == pytest.approx(float(tail), rel=1e-12)


def test_2500_images_allow_16_losses_at_1_percent_and_95_percent():
    assert binomial_p_value([16, 17], 2500, 0.01).tolist() == pytest.approx([0.0371, 0.0596], abs=1e-4)


def test_no_image_is_no_evidence():
    assert binomial_p_value(0, 0, 0.3) == 1
    assert betting_p_value(0, 0, 0, 0.3, 0.5) == 1


def test_one_number_of_images_and_many_give_the_same():
    lost = np.arange(12).reshape(3, 4)
    one = binomial_p_value(lost, 50, 0.1)
    many = binomial_p_value(lost, np.append(np.full(11, 50), 60).reshape(3, 4), 0.1)
    assert one.shape == (3, 4)
    np.testing.assert_allclose(one.ravel()[:11], many.ravel()[:11], rtol=1e-12)


@pytest.mark.parametrize("share_leaving", [0.1, 0.5, 0.9])
def test_the_binomial_given_how_many_leave_holds_though_that_is_random(share_leaving):
    n, risk = 30, 0.2
    up, down = share_leaving * risk, share_leaving * (1 - risk)  # leave wrong, leave right
    wrong, right, chance = (np.array(column) for column in zip(*trinomial(n, up, down), strict=True))
    assert worst_excess(binomial_p_value(wrong, wrong + right, risk), chance) <= 1e-12


@pytest.mark.parametrize("bet", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("gains", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_betting_holds_exactly_whatever_the_gains_and_the_bet(bet, gains, risk):
    n = 25
    lost, gained, chance = (np.array(c) for c in zip(*trinomial(n, gains + risk, gains), strict=True))
    p_values = betting_p_value(lost, gained, n, risk, bet / (1 - risk))
    assert worst_excess(p_values, chance) <= 1e-12
    # The wealth is a martingale: on average it stays where it was. (1 / p is the wealth where it has grown.)
    wealth = np.prod(
        [(1 + bet / (1 - risk) * (risk - x)) ** k for x, k in ((1, lost), (-1, gained), (0, n - lost - gained))], axis=0
    )
    assert wealth @ chance == pytest.approx(1)
    np.testing.assert_allclose(p_values, np.minimum(1, 1 / wealth), rtol=1e-9)


@pytest.mark.parametrize("gains", [0.001, 0.02, 0.2])
def test_betting_holds_on_many_images(gains):
    """Coverage by simulation: 20,000 sets of 2,500 images whose risk is the promised one."""
    rng = np.random.default_rng(0)
    lost, gained, _ = rng.multinomial(2500, [gains + 0.01, gains, 0.99 - 2 * gains], size=20_000).T
    bet = best_bet(2 * gains + 0.01, 2500, 0.01, 0.95)
    broken = int((betting_p_value(lost, gained, 2500, 0.01, bet) <= 0.05).sum())
    assert lower_limit(broken, 20_000, 0.999) <= 0.05


def test_betting_adapts_to_the_variance():
    """It certifies a drop of 0 at 1 % with few images where few differ, as a bound by the range alone cannot."""
    for differing, most in ((0.005, 1000), (0.02, 2500), (0.1, 10_000)):
        lost = gained = round(most * differing / 2)
        bet = best_bet(differing, most, 0.01, 0.95)
        assert betting_p_value(lost, gained, most, 0.01, bet) <= 0.05
    hoeffding = math.exp(-2 * 10_000 * (0.01 / 2) ** 2)
    assert hoeffding > 0.05


def test_a_bet_from_a_guess_wrong_by_half_costs_two_losses_at_most():
    """Of the 27 losses that a fitting bet allows beside 20 gains among 2,500 images."""
    lost = np.arange(60)
    most = [
        int((betting_p_value(lost, 20, 2500, 0.01, best_bet(guess, 2500, 0.01, 0.95)) <= 0.05).sum()) - 1
        for guess in (0.02, 0.01, 0.04)
    ]
    assert most == [27, 25, 26]


def test_the_bet_leaves_some_wealth():
    assert best_bet(0.0, 10, 0.01, 0.95) < 1 / 0.99
    assert 0 < best_bet(1.0, 10**6, 0.01, 0.95) < 0.01


@pytest.mark.parametrize(("hits", "trials"), [(1, 10), (130, 1000), (10, 10)])
def test_the_lower_limit_is_where_so_many_hits_are_that_unlikely(hits, trials):
    limit = lower_limit(hits, trials, 0.999)
    assert 1 - binomial_p_value(hits - 1, trials, limit) == pytest.approx(0.001, rel=1e-6)


def test_no_hits_have_the_lower_limit_0():
    assert lower_limit(0, 100, 0.999) == 0


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 10), (130, 1000), (9, 10)])
def test_the_upper_limit_is_where_so_few_hits_are_that_unlikely(hits, trials):
    assert binomial_p_value(hits, trials, float(upper_limit(hits, trials, 0.999))) == pytest.approx(0.001, rel=1e-6)
    assert upper_limit([3, 0], [3, 0], 0.999).tolist() == [1.0, 1.0]  # all, and of nothing
