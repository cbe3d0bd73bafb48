"""Each kind of statement against the same number worked out by hand or by NumPy."""

import dataclasses
import math

import numpy as np
import pytest
from tests.paper.figures import figures_of

from offramp.paper.cost_predicates import Faster
from offramp.paper.predicates import (
    Against,
    AtEveryExit,
    Deeper,
    Greater,
    LargerGain,
    Mixed,
    NoMore,
    Over,
    Q,
    Steadier,
    Summed,
)
from offramp.paper.results import BUDGETS, Clock, Results
from offramp.paper.statistics import Ruling

A, B, C, D = (Q("t", name) for name in "abcd")


def results(**rows) -> Results:
    """`a=[(exit 1, exit 2), ...]`: accuracies by row, one tuple a seed."""
    return Results(
        {("t", name): {seed: figures_of(top1) for seed, top1 in enumerate(seeds)} for name, seeds in rows.items()}
    )


def test_differences_are_of_the_mean_over_the_exits_asked_for() -> None:
    seen = results(a=[(70, 72, 80), (71, 73, 81)], b=[(70, 70, 70), (70, 70, 70)])
    assert Greater(A, B).contrasts(seen) == pytest.approx({0: 4, 1: 5})
    first, last = Q("t", "a", exits=(None, 2)), Q("t", "a", exits=(-1, None))
    assert first.by_seed(seen) == {0: 71, 1: 72}
    assert last.by_seed(seen) == {0: 80, 1: 81}
    assert Q("t", "a", exits=(5, None)).by_seed(seen) == {}  # not so many exits
    assert Q("t", "a", "damping").by_seed(seen) == {}  # no such figure


def test_a_sum_over_exits_is_one() -> None:
    seen = results(a=[(70, 72, 80), (71, 73, 81)], b=[(70, 70, 70), (70, 70, 70)])
    assert Summed(A, B).contrasts(seen) == pytest.approx({0: 12, 1: 15})
    assert Summed(A, B).says() == "a less b, top-1, sum over exits"


def test_against_the_best_variant_of_those_that_were_run() -> None:
    """The number is over the best of them; what was not run is said, and does not keep the others from being judged."""
    against = Against((Greater(A, B), Greater(A, C), Greater(A, D)))
    seen = results(a=[(71,), (71.1,), (71.2,)], b=[(70,)] * 3, c=[(70.5,), (70.55,), (70.7,)])
    finding = against.judge(seen)
    assert (finding.verdict, finding.found.mean, finding.found.n) == (
        Ruling.AGREES,
        pytest.approx(0.51667, abs=1e-4),
        3,
    )
    assert finding.note == "not run: d"
    ahead = results(a=[(71,), (71.1,), (71.2,)], b=[(70,)] * 3, d=[(72,), (72.15,), (72.2,)])
    assert against.judge(ahead).verdict is Ruling.DISAGREES
    assert against.judge(results(a=[(71,)], b=[(70,)])).verdict is Ruling.NOT_RESOLVED
    for nothing in (results(a=[(71,)]), results(b=[(71,)])):
        assert against.judge(nothing).verdict is Ruling.NOT_RUN
    behind = results(a=[(69.9,), (69.91,), (69.92,)], b=[(70,)] * 3)
    assert Against((Greater(A, B),), behind=0.2).judge(behind).verdict is Ruling.AGREES


def test_gains_against_gains() -> None:
    seen = results(a=[(75,)], b=[(70,)], c=[(82,)], d=[(80,)])
    assert LargerGain(A, B, C, D).contrasts(seen) == {0: 3}


def test_no_more_than_a_margin() -> None:
    seen = results(a=[(70.1,), (70.15,), (70.12,)], b=[(70,)] * 3)
    assert NoMore(A, B, 0.2).judge(seen).verdict is Ruling.AGREES
    assert NoMore(A, B, 0.05).judge(seen).verdict is Ruling.DISAGREES
    assert NoMore(A, B, 0.12).judge(seen).verdict is Ruling.NOT_RESOLVED


def test_a_slope_over_exits_is_that_of_least_squares() -> None:
    curve = (0.01, 0.03, 0.02, 0.07)
    seen = Results({("t", "a"): {4: figures_of((1.0,), damping=curve)}})
    of = Q("t", "a", "damping")
    (slope, _) = np.polyfit(range(4), curve, 1)
    assert Deeper(of).contrasts(seen) == pytest.approx({4: 100 * slope})
    assert Deeper(of, -1).contrasts(seen) == pytest.approx({4: -100 * slope})
    gamma = Deeper(Q("t", "a", "gamma"))
    assert (gamma.digits, Deeper(of).digits, Deeper(Q("t", "a", "weight")).digits) == (4, 4, 2)
    assert gamma.says() == "a: rise of the damping coefficient γ per exit in the last epoch, in hundredths"


def test_a_slope_over_rows_is_that_of_least_squares() -> None:
    seen = results(a=[(70,), (60,)], b=[(72,), (61,)], c=[(71,)])
    (slope, _) = np.polyfit([1, 2, 5], [70, 72, 71], 1)
    found = Over((A, B, C), (1, 2, 5), -1, 10, "").contrasts(seen)
    assert found == pytest.approx({0: -10 * slope})  # seed 1 lacks a row


def test_deviations_over_rows_are_those_of_means_over_seeds() -> None:
    """By a slow jackknife; what varies from seed to seed alone adds nothing."""
    assert Steadier((A, B), (C, D), "").contrasts(results(a=[(70,)], b=[(71,)], c=[(70,)], d=[(74,)])) == {
        0: pytest.approx((4 - 1) / math.sqrt(2))
    }
    columns = {"a": [70.0, 71, 70], "b": [71.0, 70, 70], "c": [70.0, 70.5, 71], "d": [74.0, 73, 75]}
    seen = results(**{name: [(value,) for value in values] for name, values in columns.items()})

    def less(kept):
        means = {name: np.mean([values[seed] for seed in kept]) for name, values in columns.items()}
        return (abs(means["c"] - means["d"]) - abs(means["a"] - means["b"])) / math.sqrt(2)

    pseudo = {seed: 3 * less([0, 1, 2]) - 2 * less([each for each in range(3) if each != seed]) for seed in range(3)}
    assert Steadier((A, B), (C, D), "").contrasts(seen) == pytest.approx(pseudo)


def test_time_saved_in_percent() -> None:
    rows = {("t", name): {0: figures_of((1.0,), seconds=seconds)} for name, seconds in (("a", 90), ("b", 100))}
    left, right = Q("t", "a", "seconds"), Q("t", "b", "seconds")
    assert Faster(left, right).contrasts(Results(rows)) == pytest.approx({0: 10})
    assert Faster(right, left, 1.25).contrasts(Results(rows)) == pytest.approx({0: 100 * (1 - 100 / 112.5)})


def test_times_of_two_machines_are_not_judged() -> None:
    """Device, threads, form and runs side by side must agree; of several seeds those are paired of which they do."""
    here, left, right = Clock("cpu", 1, 2, alone=True), Q("t", "a", "seconds"), Q("t", "b", "seconds")
    for other in (
        dataclasses.replace(here, device="gpu"),
        dataclasses.replace(here, threads=2),
        dataclasses.replace(here, form="compiled"),
        dataclasses.replace(here, jobs=1),
        dataclasses.replace(here, alone=False),
        dataclasses.replace(here, alone=None),
    ):
        rows = {
            ("t", "a"): {0: figures_of((1.0,), seconds=1, clock=other), 1: figures_of((1.0,), seconds=90, clock=here)},
            ("t", "b"): {seed: figures_of((1.0,), seconds=100, clock=here) for seed in (0, 1, 2)},
        }
        assert Faster(left, right).contrasts(Results(rows)) == pytest.approx({1: 10})
        del rows["t", "a"][1]
        finding = Faster(left, right).judge(Results(rows))
        wanted = Ruling.OTHER_CLOCK if other.alone else Ruling.DISTURBED
        assert (finding.verdict, finding.found) == (wanted, None)
        assert finding.verdict.startswith("not comparable" if other.alone else "not judged (other work ran beside")
    assert Faster(left, right).judge(Results({})).verdict is Ruling.NOT_RUN


def test_mixed_looks_at_every_exit() -> None:
    base = [(70, 70, 70)] * 4
    helps = [(71 + e, 70 + e, 69 + e) for e in (0.01, -0.02, 0.03, 0.0)]
    better = [(71 + e, 71 + e, 71 + e) for e in (0.01, -0.02, 0.03, 0.0)]
    assert Mixed(A, B).judge(results(a=helps, b=base)).verdict is Ruling.AGREES
    assert Mixed(A, B).judge(results(a=better, b=base)).verdict is Ruling.DISAGREES
    assert Mixed(A, B).judge(results(a=helps[:1], b=base[:1])).verdict is Ruling.NOT_RESOLVED
    assert Mixed(A, B).judge(results(a=helps)).verdict is Ruling.NOT_RUN


def test_every_exit_shows_the_one_that_gains_least() -> None:
    noise = (0.01, -0.02, 0.03, 0.0)
    base = [(70, 70, 70)] * 4
    most = [(72 + e, 69.9 + e, 71 - e) for e in noise]  # gains of 2, -0.1 and 1
    seen = results(a=most, b=base)
    assert AtEveryExit(A, B).contrasts(seen) == pytest.approx({0: -0.09, 1: -0.12, 2: -0.07, 3: -0.1})
    assert AtEveryExit(A, B).judge(seen).verdict is Ruling.DISAGREES
    finding = AtEveryExit(A, B, 1).judge(seen)
    assert finding.verdict is Ruling.AGREES
    assert finding.found.mean == pytest.approx(0.995)
    assert AtEveryExit(A, B, 3).judge(seen).verdict is Ruling.NOT_RUN  # as many exits
    assert AtEveryExit(A, B).judge(results(a=most)).verdict is Ruling.NOT_RUN
    assert AtEveryExit(A, B, 1).says() == "a less b, top-1, the least of all exits but 1"


def budgeted(**rows) -> Results:
    """`a=[(accuracy at 30 %, at 40 %, ...), ...]`, one tuple a seed; the rest up to 100 % is the last value."""
    return Results(
        {
            ("t", name): {
                seed: figures_of((50.0,), budgeted=(*curve, *[curve[-1]] * (len(BUDGETS) - len(curve))))
                for seed, curve in enumerate(seeds)
            }
            for name, seeds in rows.items()
        }
    )


def test_only_budgets_that_every_run_can_afford_are_averaged() -> None:
    """A network whose first exit is dear has no accuracy at small budgets: nan there."""
    nan = math.nan
    a, b = Q("t", "a", "budgeted"), Q("t", "b", "budgeted")
    seen = budgeted(a=[(99, 99, 71), (99, 70, 72)], b=[(10, 10, 70), (nan, nan, 70)])
    finding = Greater(a, b).judge(seen)
    assert finding.found.mean == pytest.approx(1.5)
    assert (
        finding.note == "budgets of 50, 60, 70, 80, 90, 100 % of the operations, those that all these runs can afford"
    )
    finding = Greater(a, b).judge(budgeted(a=[(71,)], b=[(70,)]))
    assert finding.found.mean == 1
    assert finding.note == "budgets of 30, 40, 50, 60, 70, 80, 90, 100 % of the operations"
    mixed = LargerGain(Q("t", "a"), Q("t", "b"), a, b)  # some of it at exits, some at budgets
    assert mixed.judge(seen).found.mean == pytest.approx(-1.5)


def test_no_budget_that_every_run_can_afford_resolves_nothing() -> None:
    a, b = Q("t", "a", "budgeted"), Q("t", "b", "budgeted")
    finding = Greater(a, b).judge(budgeted(a=[(71,)] * 3, b=[(math.nan,)] * 3))
    assert (finding.verdict, finding.found) == (Ruling.NOT_RESOLVED, None)
    assert finding.note == "there is no budget that every run can afford"
    assert Greater(a, b).judge(budgeted(a=[(71,)] * 3)).verdict is Ruling.NOT_RUN
    assert Greater(a, b).judge(results(a=[(71,)], b=[(70,)])).verdict is Ruling.NOT_RUN  # nothing was held out


def test_statements_say_what_they_are_about() -> None:
    assert Greater(A, B).says() == "a less b, top-1, mean over exits"
    early, late = Q("t", "a", exits=(None, -2)), Q("t", "a", exits=(-2, None))
    assert Greater(early, late).says() == "a: top-1, all but the last 2 exits less top-1, last 2 exits"
    assert (Greater(A, B).digits, Greater(Q("t", "a", "damping"), Q("t", "b", "damping")).digits) == (2, 4)
