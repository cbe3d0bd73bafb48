import pytest
import torch

from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine, Plan
from offramp.runtime.straight import Straight

POLICY = Policy((0.5, 0.5, EVERYBODY))


@pytest.mark.parametrize("chunk", [None, 4, 64])
@pytest.mark.parametrize("exit", [0, 2])
def test_the_tally_is_what_ran_and_changes_no_bit(small, images_of, counted, chunk: int | None, exit: int) -> None:
    network = small()
    images_BCHW = images_of(network, 10)
    rows = counted(network)
    engine = Engine(network, POLICY)
    straight = Straight(engine.program, POLICY, exit, chunk)
    expected = straight(images_BCHW)
    for counts_K in rows.values():
        counts_K[:] = [0] * 3
    tally = engine.tally(timed=True)
    answers = straight(images_BCHW, tally)
    assert all(map(torch.equal, answers, expected))
    assert (tally.stage_rows_K, tally.head_rows_K) == (rows["stages"], rows["exits"])
    assert rows == {
        "stages": [10 * (k <= exit) for k in range(3)],
        "exits": [10 * (k == exit) for k in range(3)],
    }
    assert tally.exits_K == [10 * (k == exit) for k in range(3)]
    assert [seconds > 0 for seconds in tally.seconds_K] == [k == exit for k in range(3)]


def test_untimed_it_takes_no_times(small, images_of) -> None:
    network = small()
    engine = Engine(network, POLICY, plan=Plan(straight=True))
    tally = engine.tally()
    engine.straight(3)(images_of(network, 3), tally)
    assert tally.seconds_K == [0.0] * 3
    assert tally.images == 3


def test_an_engine_that_runs_straight_on_calls_the_same_object_with_a_tally_and_without(
    small, images_of, monkeypatch
) -> None:
    network = small()
    engine = Engine(network, POLICY, plan=Plan(straight=True, chunk=4))
    tally, called = engine.tally(), []
    call = Straight.__call__

    def noted(straight: Straight, *args):
        called.append(straight)
        return call(straight, *args)

    monkeypatch.setattr(Straight, "__call__", noted)
    images_BCHW = images_of(network, 10)
    assert all(map(torch.equal, engine(images_BCHW, tally=tally), engine(images_BCHW)))
    assert called == [engine.straight(10)] * 2
    assert tally.stage_rows_K == [10] * 3
