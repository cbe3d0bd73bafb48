import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine, Plan
from offramp.runtime.choice import CHUNKS, Flow, Model, TimeTable, choose, choose_stream, exit_ms

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def table(stages: list, heads: list, drops: list | None = None, *, parts: float = 0.0, **others) -> TimeTable:
    """Times from (for the call, for each row) of each stage, head and copy."""

    def lines(pairs: list) -> tuple:
        return tuple(tuple(call + row * rows for rows in ROWS) for call, row in pairs)

    given = {"builds_K": (0.0,) * len(stages), "kernels_K": (10,) * len(stages), "capacity": None} | others
    return TimeTable(
        rows_R=ROWS,
        enter_R=(0.0,) * len(ROWS),
        stages_KR=lines(stages),
        heads_KR=lines(heads),
        drops_KR=lines(drops or [(0.0, 0.0)] * len(stages)),
        parts_R=(parts,) * len(ROWS),
        **given,
    )


def flow(shares: list[float], images: int = 64, seed: int = 0, whole: bool = False) -> Flow:
    """Each exit takes such a share of all images, whichever come to it."""
    drawn = np.random.default_rng(seed).random((len(shares), images))
    takes_KS = np.concatenate([drawn < np.array(shares)[:, None], np.ones((1, images), dtype=bool)])
    return Flow(takes_KS, tuple(range(len(shares))), whole)


EVEN = table([(0.1, 0.2)] * 3, [(0.02, 0.01)] * 3, [(0.01, 0.002)] * 3)


def test_exits_that_many_leave_at_are_asked() -> None:
    found = choose(EVEN, flow([0.5, 0.5]), 1)
    assert not found.plan.straight
    assert found.plan.asks is None
    assert found.gain == pytest.approx(found.straight[0].ms / found.adaptive[0].ms)


@pytest.mark.parametrize("batch_size", [1, 32, 256])
def test_where_nobody_leaves_the_plan_is_straight(batch_size: int) -> None:
    found = choose(EVEN, flow([0.0, 0.0]), batch_size)
    assert found.plan.straight
    assert found.gain < 1


def test_without_exits_that_may_answer_nothing_is_expected() -> None:
    nobody = replace(flow([0.0, 0.0]), open=())
    for found in (choose(EVEN, nobody, 32), choose_stream(EVEN, nobody, 32)):
        assert found.adaptive == ()
        assert found.gain == 1
        assert found.plan.straight


def test_a_slow_head_is_not_asked() -> None:
    slow = table([(0.1, 0.2)] * 3, [(1.0, 1.0), (0.02, 0.01), (0.02, 0.01)])
    assert choose(slow, flow([0.5, 0.5]), 8).plan.asks == (1,)
    assert choose(slow, flow([0.5, 0.5], whole=True), 8).plan.straight  # all of them or none


def test_a_copy_that_costs_more_than_it_saves_is_not_made() -> None:
    cheap, dear = ([(0.0, 0.0)] * 4, [(0.0, 0.0), (9.0, 9.0), (0.0, 0.0), (0.0, 0.0)])
    times = [(0.1, 0.2)] * 4, [(0.02, 0.01)] * 4
    assert choose(table(*times, cheap), flow([0.5, 0.2, 0.2]), 32).plan.compacts is None
    compacts = choose(table(*times, dear), flow([0.5, 0.2, 0.2]), 32).plan.compacts
    assert compacts is not None
    assert 1 not in compacts
    assert 0 in compacts


def test_where_rows_cost_nothing_only_single_images_leave_early() -> None:
    overhead = table([(1.0, 0.0)] * 3, [(0.02, 0.0)] * 3)
    half = flow([0.5, 0.5], images=256)
    assert not choose(overhead, half, 1).plan.straight
    assert choose(overhead, half, 32).plan.straight


def test_less_than_five_percent_is_not_worth_it() -> None:
    free = [(0.0, 0.0)] * 2
    for share, straight in ((0.08, True), (0.12, False)):  # saves half of that
        leave = Flow(np.array([np.arange(100) < 100 * share, np.ones(100, dtype=bool)]), (0,))
        assert choose(table([(1.0, 0.0)] * 2, free), leave, 1).plan.straight == straight


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch_size", [1, 12])
def test_nothing_in_the_model_beats_the_choice(batch_size: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    exits = 4

    def pairs(scale: float) -> list:
        return [tuple(pair) for pair in drawn.exponential(scale, (exits, 2)).tolist()]

    times = table(pairs(0.3), pairs(0.08), pairs(0.03), parts=0.02)
    leave = flow(drawn.uniform(0, 0.6, exits - 1).tolist(), images=24, seed=seed, whole=seed % 4 == 3)
    found = choose(times, leave, batch_size)
    model = Model(times, leave, 128)
    subsets = [s for n in range(exits) for s in itertools.combinations(range(exits - 1), n)]
    asks = [s for s in subsets if len(s) == exits - 1 or (s and not leave.whole)]
    layouts = {(one.plan.sizes, one.plan.chunk) for one in found.adaptive}
    best = min(
        model.batch_ms(Plan(asks=asked, compacts=compacts, sizes=sizes, chunk=chunk), batch_size)
        for asked, compacts, (sizes, chunk) in itertools.product(asks, subsets, layouts)
    )
    assert found.adaptive[0].ms == pytest.approx(best)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(chunk=None),
        Plan(sizes=(), chunk=7),
        Plan(sizes=(4, 16), chunk=16),
        Plan(asks=(1,), chunk=None),
        Plan(compacts=(), chunk=None),
        Plan(compacts=(1,), sizes=(), chunk=None),
        Plan(straight=True, chunk=16),
        Plan(straight=True, chunk=7),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 20, 60])
def test_the_model_runs_the_rows_that_the_engine_runs(recorded, plan: Plan, batch_size: int) -> None:
    exits, images = 4, 120
    logits_SKC = torch.randn(images, exits, 5, generator=torch.Generator().manual_seed(0))
    engine = Engine(recorded(exits, 5), Policy((0.5, 0.6, 0.45, EVERYBODY)), plan=plan)
    tally = engine.tally()
    for batch in torch.split(logits_SKC, batch_size):
        engine(batch, tally=tally)
    takes_KS = [engine.policy.takes(k, logits_SKC[:, k].softmax(-1).amax(-1)).numpy() for k in range(exits)]
    leave = Flow(np.array(takes_KS), (0, 1, 2))
    stages = Model(table([(0.0, 1.0)] * exits, [(0.0, 0.0)] * exits), leave, 128)
    heads = Model(table([(0.0, 0.0)] * exits, [(0.0, 1.0)] * exits), leave, 128)
    batches = images / batch_size
    asked = leave.asked(plan)
    assert (stages.stage_ms(plan, batch_size, asked) * batches).round(6).tolist() == tally.stage_rows_K
    assert (heads.stage_ms(plan, batch_size, asked) * batches).round(6).tolist() == tally.head_rows_K


@pytest.mark.parametrize("chunk", [7, 64, None])
def test_straight_on_copies_nothing_between_its_chunks(chunk: int | None) -> None:
    rows = table([(0.0, 1.0)] * 3, [(0.0, 0.1)] * 3, [(5.0, 0.2)] * 3)
    leave = flow([0.5, 0.5], images=256)
    ms = Model(rows, leave, 256).batch_ms(Plan(straight=True, chunk=chunk), 256)
    assert ms == pytest.approx(256 * 3.1)  # the rows of three stages and of the last exit, in however many pieces
    calls = table([(2.0, 1.0)] * 3, [(1.0, 0.1)] * 3, [(5.0, 0.2)] * 3)
    pieces = 1 if chunk is None else -(-256 // chunk)
    ms = Model(calls, leave, 256).batch_ms(Plan(straight=True, chunk=chunk), 256)
    assert ms == pytest.approx(256 * 3.1 + pieces * 7)


def test_kernels_that_do_not_stay_are_paid_for_again() -> None:
    times = [(0.1, 0.2)] * 3, [(0.02, 0.01)] * 3
    leave = flow([0.5, 0.5], images=256)
    ample = choose(table(*times), leave, 32)
    scarce = choose(table(*times, builds_K=(5.0,) * 3, capacity=60), leave, 32)
    assert ample.adaptive[0].plan.sizes == ()
    sizes = scarce.adaptive[0].plan.sizes
    assert sizes != ()
    assert scarce.adaptive[0].ms > ample.adaptive[0].ms


def test_a_stream_gains_what_its_rows_promise_where_rows_are_all_there_is() -> None:
    leave = flow([0.5, 0.5], images=1000)
    reach = [1.0, float((~leave.takes_KS[0]).mean()), float((~leave.takes_KS[:2].any(0)).mean())]
    found = choose_stream(table([(0.0, 0.2)] * 3, [(0.0, 0.0)] * 3), leave, 32)
    assert found.gain == pytest.approx(3 / sum(reach))


def test_a_stream_takes_larger_chunks_where_calls_cost_most() -> None:
    calls, rows = (table([(call, row)] * 3, [(0.0, 0.001)] * 3) for call, row in ((1.0, 0.01), (0.0, 0.1)))
    assert choose_stream(calls, flow([0.5, 0.5]), 32).plan.chunk == max(CHUNKS)
    dear = replace(rows, stages_KR=tuple(tuple(0.1 * n if n < 64 else 0.2 * n for n in ROWS) for _ in range(3)))
    assert (choose_stream(dear, flow([0.5, 0.5]), 32).plan.chunk or 0) <= 32


def test_a_plain_loop_over_a_streams_batches_is_among_the_ways_straight_on_whatever_was_timed() -> None:
    few = TimeTable(
        (1, 8), (0.0, 0.0), ((0.3, 1.7),) * 3, ((0.1, 0.1),) * 3, ((0.0, 0.0),) * 3, (0.0, 0.0), (0.0,) * 3, (10,) * 3
    )
    assert {way.plan.chunk for way in choose_stream(few, flow([0.5, 0.5]), 32).straight} == {8, 32}


@pytest.mark.parametrize("batch_size", [1, 16, 64])
def test_exit_times_of_a_batch_sum_to_its_time(batch_size: int) -> None:
    leave = flow([0.3, 0.4], images=64)
    plan = Plan(sizes=(8, 32, 64))
    each_K = exit_ms(EVEN, leave, plan, batch_size)
    batches = 64 / batch_size
    exits_S = leave.exits((0, 1))
    total = batches * Model(EVEN, leave, 128).stage_ms(plan, batch_size, range(3)).sum()
    assert np.array(each_K)[exits_S].sum() == pytest.approx(total)
    assert 0 < each_K[0] < each_K[1] < each_K[2]


def test_exit_times_exist_where_nobody_comes() -> None:
    everybody = flow([1.0, 0.0])
    for batch_size in (1, 16, None):
        first, second, third = exit_ms(EVEN, everybody, Plan(chunk=32), batch_size)
        assert second - first == pytest.approx(0.3 + 0.03)  # a single image through stage and exit
        assert third - second == pytest.approx(0.3 + 0.03)


def test_beyond_the_last_number_of_rows_times_go_on_rising() -> None:
    model = Model(table([(1.0, 0.5)], [(0.0, 0.0)]), flow([]), 300)
    assert model.stages[0][3] == pytest.approx(2.5)
    assert model.stages[0][300] == pytest.approx(151)


def test_parting_costs_where_some_leave_and_others_stay() -> None:
    leave = Flow(np.array([[True, False] * 4, [True] * 8]), (0,))
    times = [(0.0, 1.0)] * 2, [(0.0, 0.0)] * 2
    for batch_size, parted in ((8, 1), (1, 0)):
        free, dear = (Model(table(*times, parts=ms), leave, 8) for ms in (0.0, 5.0))
        assert dear.batch_ms(Plan(), batch_size) - free.batch_ms(Plan(), batch_size) == pytest.approx(5 * parted)
