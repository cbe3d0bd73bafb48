"""Gains at equal times and their intervals, against slow ways to the same; and what is said of them: yes, no, open."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from offramp.results.bench import accuracy
from offramp.results.verdict.comparison import at_equal_time, frontier, simplest
from offramp.results.verdict.conclusion import conclude
from offramp.results.verdict.values import Contender, EqualTimeComparison

IMAGES = 4000
ROUNDS = 15


def contender(kind: Any, exit: int | None, top1: float, ms: float, *, seed: int = 0, **more: Any) -> Contender:
    """One that is right on the first images and, of the rest, on some by chance; the same rounds are slow for all."""
    numbers = np.random.default_rng(seed)
    difficulty_S = np.linspace(0, 1, IMAGES) + numbers.normal(0, 0.02, IMAGES)
    right_S = torch.from_numpy(difficulty_S <= np.quantile(difficulty_S, top1 / 100)).double()
    slow_R = 1 + 0.3 * np.random.default_rng(99).random(ROUNDS)
    ms_R = tuple((ms * slow_R * numbers.normal(1, more.pop("jitter", 0.01), ROUNDS)).tolist())
    search_S = more.pop("search_right_S", right_S)
    name = more.pop("name", f"{kind} {exit}" if exit else f"{kind} at {ms:g}")
    return Contender(name, kind, exit, right_S, search_S, ms_R, 1e6 * ms, **more)


def engine(top1: float, ms: float, seed: int = 1, **more: Any) -> Contender:
    return contender("engine", None, top1, ms, seed=seed, **more)


CUTS = [contender("cut", k, top1, ms, seed=10 + k) for k, top1, ms in ((1, 80, 1.0), (2, 88, 2.0), (3, 90, 3.0))]
ALONE = [contender("alone", k, top1, ms, seed=20 + k) for k, top1, ms in ((1, 82, 1.0), (2, 89, 2.0), (3, 91, 3.0))]
RIVALS = [*CUTS, *ALONE]


# -- the frontier ------------------------------------------------------------------------------------------------------


def test_the_frontier_is_what_no_mixture_of_two_beats() -> None:
    numbers = np.random.default_rng(0)
    for _ in range(20):
        many = [
            contender("cut", k, top1, ms, seed=k, jitter=0.0)
            for k, (top1, ms) in enumerate(zip(numbers.uniform(50, 99, 8), numbers.uniform(1, 9, 8), strict=True), 1)
        ]
        kept = frontier(many)
        for one in many:
            as_fast = [other for other in many if other.ms <= one.ms and other is not one]
            beaten = any(other.search_top1 >= one.search_top1 for other in as_fast)
            for a in as_fast:
                for b in many:
                    if b.ms > one.ms:
                        share = (one.ms - a.ms) / (b.ms - a.ms)
                        beaten |= (1 - share) * a.search_top1 + share * b.search_top1 >= one.search_top1
            assert (one in kept) is not beaten


def test_which_network_is_the_rival_is_decided_on_search() -> None:
    """One that shines on the test images alone is no rival of the frontier."""
    bad_S = torch.zeros(IMAGES, dtype=torch.float64)
    lucky = contender("alone", 2, 99, 1.9, name="lucky", search_right_S=bad_S)
    assert lucky not in frontier([*RIVALS, lucky])
    (found,) = at_equal_time([engine(92, 2.1)], [*RIVALS, lucky])
    assert "lucky" not in found.rivals
    assert conclude(at_equal_time([engine(92, 2.1)], RIVALS), RIVALS, IMAGES).answer == "yes"
    # But no yes is given against it: it may be better than search knows.
    assert found.low > 0 > found.surest
    said = conclude([found], [*RIVALS, lucky], IMAGES)
    assert said.answer == "open"
    assert "on the test images another is best" in said.headline


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_against_one_network_the_interval_is_that_of_paired_shares() -> None:
    one, rival = engine(90.5, 3.5), ALONE[-1]
    (found,) = at_equal_time([one], RIVALS)
    assert found.rivals == ("alone 3",)
    wanted = accuracy(one.right_S.bool(), rival.right_S.bool())
    assert found.gain == pytest.approx(-wanted.drop)
    assert (found.low, found.high) == pytest.approx((-wanted.high, -wanted.low), abs=0.01)


def test_against_a_mixture_the_interval_is_that_of_a_bootstrap() -> None:
    """Images and rounds drawn anew, median times, mixture and gain found anew: the slow way."""
    noisy = {"jitter": 0.1}
    one = engine(87.0, 1.5, **noisy)
    rivals = [contender("cut", 1, 80, 1.0, seed=3, **noisy), contender("cut", 2, 90, 2.0, seed=4, **noisy)]
    (found,) = at_equal_time([one], rivals)
    numbers = np.random.default_rng(5)
    right_3S = np.stack([c.right_S.numpy() for c in (one, *rivals)])
    ms_3R = np.array([c.ms_R for c in (one, *rivals)])
    gains = []
    for _ in range(3000):
        ms, first, second = np.median(ms_3R[:, numbers.integers(ROUNDS, size=ROUNDS)], axis=1)
        share = np.clip((ms - first) / (second - first), 0, 1)
        drawn = right_3S[:, numbers.integers(IMAGES, size=IMAGES)].mean(1)
        gains.append(100 * (drawn[0] - (1 - share) * drawn[1] - share * drawn[2]))
    low, high = np.quantile(gains, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))
    steady = [contender("cut", k, top1, k, seed=2 + k, jitter=0.0) for k, top1 in ((1, 80), (2, 90))]
    (fixed,) = at_equal_time([engine(87.0, 1.5, jitter=0.0)], steady)
    assert found.high - found.low > 1.2 * (fixed.high - fixed.low)  # the rounds count


def test_nothing_seen_is_not_nothing_possible() -> None:
    same = contender("cut", 1, 90, 1.0)
    (found,) = at_equal_time([contender("engine", None, 90, 1.0)], [same])
    assert found.gain == 0
    assert found.low < 0 < found.high


def test_intervals_hold_together() -> None:
    """The more policies, the wider each one's interval; those that run straight on are no comparison."""
    (alone,) = at_equal_time([engine(88, 1.5)], RIVALS)
    several = at_equal_time([engine(88, 1.5), engine(89, 1.8), engine(90, 2.5), engine(90, 2.8)], RIVALS)
    with_straight = at_equal_time([engine(88, 1.5), engine(91, 3.0, straight=True)], RIVALS)
    assert several[0].high - several[0].low > 1.2 * (alone.high - alone.low)
    assert with_straight[0] == alone


def test_coverage() -> None:
    """Of made-up trials with known gains, intervals that miss are about as many as promised."""
    numbers = np.random.default_rng(0)
    missed = 0
    for trial in range(200):
        draws = numbers.random((3, 500))
        right_3S = torch.from_numpy(draws < np.array([[0.85], [0.8], [0.9]])).double()
        ms_R = (1.5, 1.0, 2.0)
        made = [
            Contender(str(i), kind, 1, right_S, right_S, [ms] * 5, 1.0)
            for i, (kind, right_S, ms) in enumerate(zip(("engine", "cut", "cut"), right_3S, ms_R, strict=True))
        ]
        (found,) = at_equal_time(made[:1], made[1:], replicates=2000, seed=trial)
        missed += not found.low <= 0 <= found.high
    assert missed <= 20  # 10 expected; the exact binomial tail beyond 20 is below 0.002


# -- the conclusion ----------------------------------------------------------------------------------------------------


def test_yes() -> None:
    engines = [engine(82, 1.02), engine(90, 1.5), engine(91, 2.5)]
    comparisons = at_equal_time(engines, RIVALS)
    found = conclude(comparisons, RIVALS, IMAGES)
    best = comparisons[1]
    assert found.answer == "yes"
    assert found.headline == (
        f"Yes: at {best.ms:.3g} ms per image early exits are {best.gain:.2f} points more accurate than the best "
        f"smaller network of that time (95 % interval {best.low:.2f} to {best.high:.2f})."
    )
    assert best.gain == pytest.approx(90 - 85.5, abs=0.5)
    assert "alone 1 for " in found.details[0]
    assert (
        found.details[1] == f"Early exits gain something: from {best.ms:.3g} to {comparisons[2].ms:.3g} ms per image."
    )
    assert found.details[2].startswith("Not resolved: ")
    # What would have to be gained may be asked for.
    asked = conclude(comparisons, RIVALS, IMAGES, least_gain=3.0)
    assert asked.answer == "yes"
    assert asked.details[1] == f"Early exits gain more than 3 points: {best.ms:.3g} ms per image."
    assert conclude(comparisons, RIVALS, IMAGES, least_gain=9.0).answer == "no"


@pytest.mark.parametrize(
    ("rivals", "says"),
    [
        (CUTS[:2], "No: cut the network at exit 1 and be done"),
        ([*CUTS, *ALONE[:2]], "No: cut the network at exit 2 and be done"),
        (CUTS, "No: run the network straight to its last exit and be done"),
        (RIVALS, "No: train the network up to exit 3 with that exit alone and be done"),
    ],
)
def test_no(rivals: list[Contender], says: str) -> None:
    """What to do in its place: the fastest that is as accurate as any on search, as far as that can be told."""
    if says.startswith("No: cut"):  # a deeper exit adds nothing
        exit = int(says.split("exit ")[1][0])
        rivals = [contender(one.kind, one.exit, 88 if (one.exit or 0) >= exit else one.top1, one.ms) for one in rivals]
        rivals = [one for one in rivals if one.kind == "cut"]
    comparisons = at_equal_time([engine(78, 1.1), engine(79, 2.0), engine(90, 3.0, straight=True)], rivals)
    found = conclude(comparisons, rivals, IMAGES)
    assert found.answer == "no"
    assert found.headline.startswith(says)
    assert found.details[0].startswith("The most that early exits may gain is -")
    assert found.details[1].startswith("They gain nothing: from 1.2")


def test_no_where_the_engine_always_runs_straight_on() -> None:
    comparisons = at_equal_time([engine(91, 3.0, straight=True)], RIVALS)
    found = conclude(comparisons, RIVALS, IMAGES)
    assert found.answer == "no"
    assert "runs straight on under every policy" in found.details[0]


def test_not_resolved() -> None:
    comparisons = at_equal_time([engine(85.8, 1.5)], RIVALS)
    found = conclude(comparisons, RIVALS, IMAGES)
    assert found.answer == "open"
    assert found.headline.startswith("Not resolved: at ")
    assert "the interval of the gain covers 0" in found.headline
    assert "more test images or rounds" in found.headline


def test_how_many_images_would_tell() -> None:
    """The interval shrinks with the root of their number: to half its width with four times as many."""
    one = EqualTimeComparison(
        "early", 1.5, 86.0, ("cut 1",), 0.0, 85.8, 0.2, -0.2, 0.6, -0.2, straight=False, missing=()
    )
    assert "about 16,000 test images" in conclude([one], RIVALS, IMAGES).headline
    none = dataclasses.replace(one, gain=0.0, low=-0.4, high=0.4)
    assert "size" not in conclude([none], RIVALS, IMAGES).headline


def test_without_the_smaller_networks_there_is_no_yes() -> None:
    engines = [engine(90, 1.5), engine(90.5, 2.5)]
    found = conclude(at_equal_time(engines, CUTS), CUTS, IMAGES)
    assert found.answer == "open"
    assert "trained for that time alone are missing" in found.headline
    assert found.details[-1].startswith("The smaller networks trained with exits 1, 2, 3 alone are missing")
    # Where those next to it are there, it is.
    some = [*CUTS, *ALONE[1:]]
    comparisons = at_equal_time(engines, some)
    assert [one.missing for one in comparisons] == [(1,), ()]
    assert conclude(comparisons, some, IMAGES).answer == "open" if comparisons[1].low <= 0 else "yes"
    # A no needs none: they could only add to it.
    assert conclude(at_equal_time([engine(75, 1.5)], CUTS), CUTS, IMAGES).answer == "no"


def test_the_simplest_is_the_fastest_that_is_as_accurate() -> None:
    assert simplest(RIVALS).name == "alone 3"
    close = contender("cut", 2, 90.98, 2.0, seed=5)
    assert simplest([*RIVALS, close]) is close
