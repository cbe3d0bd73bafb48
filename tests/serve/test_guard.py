import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from offramp.certificate import Disagreement, Promise
from offramp.errors import UsageError
from offramp.evaluation import Certificate, Ladder
from offramp.evaluation.bounds import lower_limit
from offramp.evaluation.populations import POPULATIONS, grid, tally
from offramp.evaluation.promises import climb, disagreement_limits, rung_promises
from offramp.policy import EVERYBODY, Policy
from offramp.serve.guard import ODDS, Guard, bet, guards, wealth

LEVEL = 0.01
STREAMS = 10_000


def alarms(differs, allowed, level, images: int, streams: int = STREAMS) -> np.ndarray:
    """After how many images each stream raises its alarm; 0: never. `differs(image)` gives a mask of the streams."""
    bets_TB, found_T = np.zeros((streams, len(ODDS))), np.zeros(streams, dtype=np.int64)
    for before in range(images):
        bets_TB = bet(bets_TB, differs(before), before, allowed)
        found_T[(found_T == 0) & (wealth(bets_TB, before + 1) >= 1 / level)] = before + 1
    return found_T


def independent(share, rng: np.random.Generator, streams: int = STREAMS):
    return lambda _: rng.random(streams) < share


@pytest.mark.parametrize(("allowed", "images"), [(0.005, 1500), (0.016, 2500), (0.07, 1500), (0.4, 800)])
def test_10_000_streams_without_drift_raise_false_alarms_at_the_level_at_most(allowed, images):
    """At the limit itself, which is the worst that is allowed, and looked at after each image."""
    false = int((alarms(independent(allowed, np.random.default_rng(0)), allowed, LEVEL, images) > 0).sum())
    assert lower_limit(false, STREAMS, 0.999) <= LEVEL
    assert false > 0.002 * STREAMS  # it is not so quiet because it never speaks


def test_what_came_before_may_decide_what_comes_as_long_as_it_is_allowed():
    """An opponent who differs as often as allowed only while the guard is rich, or only while it is not."""
    rng, allowed = np.random.default_rng(0), 0.05
    for richer in (True, False):
        bets_TB, found_T = np.zeros((STREAMS, len(ODDS))), np.zeros(STREAMS, dtype=bool)
        for before in range(800):
            is_rich_T = wealth(bets_TB, before) > 1
            differs_T = (rng.random(STREAMS) < allowed) & (is_rich_T == richer)
            bets_TB = bet(bets_TB, differs_T, before, allowed)
            found_T |= wealth(bets_TB, before + 1) >= 1 / LEVEL
        assert lower_limit(int(found_T.sum()), STREAMS, 0.999) <= LEVEL


def test_a_test_for_one_look_raises_false_alarms_when_it_is_looked_at_all_the_time():
    """Why betting: the exact binomial test at the same level, after every 50th image."""
    rng, allowed = np.random.default_rng(0), 0.02
    seen_TN = (rng.random((2000, 2000)) < allowed).cumsum(1)
    looks = np.arange(49, 2000, 50)
    p_TN = stats.binom.sf(seen_TN[:, looks] - 1, looks + 1, allowed)
    assert lower_limit(int((p_TN <= LEVEL).any(1).sum()), 2000, 0.999) > 3 * LEVEL


@pytest.mark.parametrize("make", POPULATIONS, ids=lambda make: make.__name__)
def test_from_certify_images_to_stream_false_alarms_are_the_level_at_most(make):
    """Limits from drawn certify images, the rung that these images chose, a stream of the same population on it."""
    rng, population, streams = np.random.default_rng(2), make(grid(41), 0.05), 3000
    promises = rung_promises((0.02, 0.05, 0.1), 0.95, "regret")
    happens = population.events("regret")
    left_MJ = population.exits_taken < len(population.confidence_KM)
    early_MJ = np.minimum(population.exits_taken, len(population.confidence_KM) - 1)
    differs_MJ = left_MJ & (np.take_along_axis(population.right_KM.T, early_MJ, 1) != population.full_M[:, None])
    share_J = (population.share_M @ differs_MJ) / np.maximum(population.share_M @ left_MJ, 1e-300)
    certify_TM = population.draw(600, streams, rng)
    on_search, on_certify = tally(happens, population.draw(600, streams, rng)), tally(happens, certify_TM)
    limits_TJ = disagreement_limits(certify_TM @ differs_MJ, certify_TM @ left_MJ)
    each = (LEVEL - 0.005) / len(promises)  # as `guards` divides it
    raised_T = np.zeros(streams, dtype=bool)
    for chosen_T in climb(promises, on_search, on_certify):
        limit_T = np.take_along_axis(limits_TJ, np.maximum(chosen_T, 0)[:, None], 1).squeeze(1)
        found_T = alarms(independent(share_J[chosen_T], rng, streams), limit_T, each, 200, streams) > 0
        raised_T |= found_T & (chosen_T >= 0)
    assert lower_limit(int(raised_T.sum()), streams, 0.999) <= LEVEL


@pytest.mark.parametrize("allowed", [0.02, 0.3, 1.0])
def test_wealth_is_1_in_expectation_over_all_streams(allowed):
    """Exactly, by enumeration: at the limit a fair game, below it a losing one."""
    for share in (allowed, allowed / 2):
        expected = 0.0
        for stream in itertools.product((False, True), repeat=9):
            guard = Guard(allowed)
            for differs in stream:
                guard.observe(differs)
            expected += np.prod([share if differs else 1 - share for differs in stream]) * guard.e_value
        assert expected == pytest.approx(1) if share == allowed else expected < 1


def test_wealth_is_that_of_gamblers_who_begin_one_after_another():
    """The same by hand: each gambler's stake times the likelihood ratio of what came after the stake was placed."""
    stream, allowed = np.random.default_rng(3).random(60) < 0.2, 0.05
    guard = Guard(allowed, 1e-6)
    for differs in stream:
        guard.observe(bool(differs))
    kept = [1.0, *(0.5 / (1 + np.log(n)) for n in range(1, len(stream) + 1))]
    by_hand = kept[-1]
    for begin in range(len(stream)):
        for times in ODDS:
            bet_on = times * allowed / (1 - allowed + times * allowed)
            ratios = np.where(stream[begin:], bet_on / allowed, (1 - bet_on) / (1 - allowed))
            by_hand += (kept[begin] - kept[begin + 1]) / len(ODDS) * ratios.prod()
    assert guard.e_value == pytest.approx(by_hand)
    assert (guard.observed, guard.differing) == (60, stream.sum())


def test_drift_is_found_also_after_a_long_quiet_time():
    rng = np.random.default_rng(4)
    for quiet, drifted, soon in ((0, 0.10, 150), (3000, 0.10, 300), (3000, 0.05, 1200)):
        found_T = alarms(
            lambda image, quiet=quiet, drifted=drifted: rng.random(300) < (0.006 if image < quiet else drifted),
            0.016,
            LEVEL / 8,
            quiet + soon,
            streams=300,
        )
        assert (found_T > quiet).mean() > 0.9


def test_an_alarm_is_said_in_words_and_stays():
    guard = Guard(0.02, name="rung 2")
    assert (guard.alarm, guard.e_value) == (None, 1.0)
    while guard.alarm is None:
        guard.observe(True)
    assert guard.observed <= 5
    assert guard.alarm.startswith("Early answers of rung 2 differ from the last exit's more often than when it was")
    assert f"{guard.observed} of {guard.observed} that were looked at, where at most 2.00% may" in guard.alarm
    said = guard.alarm
    for _ in range(2000):
        guard.observe(True)
    assert np.isfinite(guard.e_value)
    for _ in range(5000):
        guard.observe(False)
    assert guard.alarm == said


def test_where_all_may_differ_nothing_is_found():
    guard = Guard(1.0)
    for _ in range(1000):
        guard.observe(True)
    assert guard.alarm is None


@pytest.mark.parametrize(
    "wrong", [{"allowed": 0.0}, {"allowed": 1.1}, {"level": 0.0}, {"level": 1.0}, {"allowed": np.nan}]
)
def test_what_cannot_be_watched_is_refused(wrong):
    with pytest.raises(UsageError, match=r"^(allowed|level) must be a number"):
        Guard(**{"allowed": 0.1, **wrong})


def rung(risk: float, limit: float | None, threshold: float) -> Policy:
    seen = None if limit is None else Disagreement(100, 1, limit, 0.995)
    certificate = Certificate(Promise(risk, 0.975), False, "", "", 100, 100, 0, 0, 1, "x/certify", "f", "w" * 64)
    policy = Policy((threshold, EVERYBODY))
    return replace(certificate, together=0.95, disagreement=seen).on(policy)


def test_each_rung_has_a_guard_and_they_divide_the_level():
    ladder = Ladder((rung(0.01, 0.02, 0.9), rung(0.02, 0.05, 0.8)), 0.95)
    first, second = guards(ladder.rungs, 0.02)
    assert (first.allowed, second.allowed) == (0.02, 0.05)
    assert first.level + second.level == pytest.approx(0.02 - 0.005)
    assert (first.name, second.name) == ("rung 1", "rung 2")


def test_what_knows_no_disagreement_has_no_guard():
    plain, old, known = Policy((0.5, EVERYBODY)), rung(0.01, None, 0.9), rung(0.01, 0.02, 0.9)
    assert guards([plain, old]) == (None, None)
    nothing, guard = guards([plain, known])
    assert nothing is None
    assert guard.level == pytest.approx(LEVEL - 0.005)
    with pytest.raises(UsageError, match=r"level lies between 0.005, the doubt in the limits, and 1, not 0.004"):
        guards([known], 0.004)
