import pytest

from offramp.serve.overload import Pace, Rungs


def test_the_pace_is_what_was_answered_in_a_second() -> None:
    pace = Pace(0.0)
    assert pace.rate(0.0) == 0.0
    assert pace.capacity is None
    now = 0.0
    for _ in range(200):  # ten images in 20 ms, and nothing for 30 ms
        now += 0.05
        pace.count(10, 0.02, now)
    assert pace.rate(now) == pytest.approx(200, rel=0.05)
    assert pace.capacity == pytest.approx(500, rel=0.05)
    assert pace.rate(now + 60) < 5
    assert pace.capacity == pytest.approx(500, rel=0.05)  # an idle machine is no slower
    for _ in range(200):
        now += 0.05
        pace.count(5, 0.05, now)
    assert pace.capacity == pytest.approx(100, rel=0.05)


def test_rungs_rise_with_the_load_and_come_down_one_by_one() -> None:
    rungs = Rungs(4, calm=1.0)
    assert [rungs.at(load, 0.0) for load in (0.0, 0.39, 0.4, 0.61, 0.85, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert [rungs.at(0.0, now) for now in (0.1, 1.0, 1.2, 2.0, 2.2, 3.2, 9.0)] == [4, 4, 3, 3, 2, 1, 1]


def test_rungs_do_not_flutter() -> None:
    """A load that swings around where a rung begins, or falls for less than it has to stay down, changes nothing."""
    rungs = Rungs(3, calm=1.0)
    assert rungs.at(0.45, 0.0) == 2
    assert {rungs.at(0.3 + 0.2 * (step % 2), 0.1 * step) for step in range(100)} == {2}
    assert rungs.at(0.0, 10.0) == 2
    assert rungs.at(0.3, 10.9) == 2
    assert rungs.at(0.0, 11.5) == 2  # the calm begins anew
    assert rungs.at(0.0, 12.6) == 1


def test_after_a_long_silence_the_first_image_runs_on_the_first_rung() -> None:
    rungs = Rungs(4, calm=1.0)
    rungs.at(1.0, 0.0)
    rungs.at(0.0, 0.1)
    assert rungs.at(0.0, 60.0) == 1


def test_one_rung_stays_one() -> None:
    assert {Rungs(1).at(load, 0.0) for load in (0.0, 0.9, 1.0)} == {1}
