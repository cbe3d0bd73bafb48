import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.costs import cost
from offramp.errors import UsageError
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import BF16, FLOAT32, Answers, Engine, Form, Plan, Tally, agreement
from offramp.runtime.tuning import CERTIFICATE

BATCHES = (0, 1, 2, 7, 33, 200)
NETWORKS = ("msdnet", "ranet", "by hand")
MEASURES = (
    Measure(),
    Measure(renormalise=True),
    Measure("margin"),
    Measure("entropy", renormalise=True),
    Measure("patience"),
)


def full(network, images_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images_BCHW)


def same(answers: Answers, expected) -> None:
    """Bit for bit, NaN included."""
    for got_B, wanted_B in zip(answers, expected, strict=True):
        torch.testing.assert_close(got_B, wanted_B, rtol=0, atol=0, equal_nan=True)


def agrees(engine: Engine, logits_KBC: Tensor, images_BCHW: Tensor, tolerance: float) -> None:
    """For every size of batch, and with few flips."""
    for num_images in BATCHES:
        answers = engine(images_BCHW[:num_images])
        policy = engine.policy_under(engine.plan_for(num_images))
        found = agreement(answers, logits_KBC[:, :num_images], policy, engine.network.num_classes, tolerance)
        assert found.images == num_images
        assert found.wrong == 0
        assert found.flips <= num_images * tolerance * 20


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        pytest.param(name, measure, marks=pytest.mark.slow if name == "ranet" and measure != MEASURES[0] else ())
        for name in NETWORKS
        for measure in MEASURES
    ],
    ids=str,
)
def test_answers_are_those_of_the_policy_on_a_full_pass(small, images_of, leaving, device, name, measure) -> None:
    network = small(name, damping=name != "by hand")
    images_BCHW = images_of(network, 200)
    logits_KBC = full(network, images_BCHW)
    if measure.name == "patience":
        policy = Policy((*[1.0] * (network.num_exits - 1), EVERYBODY), measure)
    else:
        policy = leaving(logits_KBC, network.num_classes, [0.3, 0.5, 0.4], measure)
    assert len(policy.choose(logits_KBC, network.num_classes).exits_S.unique()) >= 2
    agrees(Engine(network, policy, device=device), logits_KBC, images_BCHW, FLOAT32)


@pytest.mark.parametrize("name", ["by hand", *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[:2])])
@pytest.mark.parametrize(
    "shares", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0.5, 1, 0), (0.4, 0, 0.5), (0.02, 0.02, 0.02), (0.97, 0.9, 0.9)]
)
def test_any_share_may_leave_anywhere(small, images_of, leaving, name, shares) -> None:
    network = small(name)
    images_BCHW = images_of(network, 200)
    logits_KBC = full(network, images_BCHW)
    policy = leaving(logits_KBC, network.num_classes, shares)
    agrees(Engine(network, policy), logits_KBC, images_BCHW, FLOAT32)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(sizes=(), chunk=None),
        Plan(chunk=5),
        Plan(chunk=1, compacts=(0,)),
        Plan(compacts=(), chunk=None),
        Plan(asks=(1,), sizes=(10,)),
        Plan(asks=()),
        Plan(straight=True),
    ],
    ids=str,
)
def test_plans_change_no_answer(small, images_of, leaving, plan) -> None:
    network = small()
    images_BCHW = images_of(network, 200)
    logits_KBC = full(network, images_BCHW)
    policy = leaving(logits_KBC, network.num_classes, (0.4, 0.5), Measure("margin", temperatures=(0.5, 1.0, 2.0)))
    agrees(Engine(network, policy, plan=plan), logits_KBC, images_BCHW, FLOAT32)


def test_float64_agrees_to_the_twelfth_digit(small, images_of, leaving) -> None:
    network = small().double()
    images_BCHW = images_of(network, 200).double()
    logits_KBC = full(network, images_BCHW)
    engine = Engine(network, leaving(logits_KBC, network.num_classes, (0.4, 0.5)))
    assert engine(images_BCHW).confidence_B.dtype == torch.float64
    agrees(engine, logits_KBC, images_BCHW, 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_agrees_to_its_own_precision(small, images_of, leaving, device, name) -> None:
    network = small(name)
    images_BCHW = images_of(network, 200)
    logits_KBC = full(network, images_BCHW)
    engine = Engine(network, leaving(logits_KBC, 5, (0.4, 0.5, 0.3)), form=Form(precision="bf16"), device=device)
    answers = engine(images_BCHW)
    assert answers.confidence_B.dtype == torch.float32
    assert agreement(answers, logits_KBC, engine.policy, 5, BF16).is_rounding(network.num_exits)
    assert (answers.confidence_B.cpu() - engine.policy.choose(logits_KBC, 5).confidence_S).abs().max() > 0


@st.composite
def cases(draw):
    """Logits with ties and broken rows, thresholds that are often a confidence that occurs, any plan and batch."""
    num_exits, num_classes, num_images = draw(st.integers(1, 5)), draw(st.integers(2, 4)), draw(st.integers(0, 20))
    damping = draw(st.integers(0, 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits_KBC = torch.randint(-4, 5, (num_exits, num_images, num_classes + damping), generator=generator) / 2
    if draw(st.booleans()):
        logits_KBC[torch.rand(num_exits, num_images, generator=generator) < 0.2] = torch.nan
    name = draw(st.sampled_from(["softmax", "margin", "entropy", "patience"]))
    temperatures = None
    if name != "patience" and draw(st.booleans()):
        temperatures = tuple(draw(st.sampled_from([0.5, 1.0, 1.7])) for _ in range(num_exits))
    measure = Measure(name, name != "patience" and draw(st.booleans()), temperatures)
    confidence_KB, _ = measure.over(logits_KBC, num_classes)
    thresholds = []
    for confidence_B in confidence_KB[:-1]:
        occurring = [value for value in confidence_B.tolist() if value == value]
        thresholds.append(draw(st.sampled_from([NOBODY, EVERYBODY, 0.5, *occurring])))
    exits = st.lists(st.integers(0, num_exits - 1), unique=True).map(tuple)
    plan = Plan(
        asks=None if name == "patience" else draw(st.none() | exits),
        compacts=draw(st.none() | exits),
        sizes=draw(st.sampled_from([(), (1, 2, 3, 4, 6, 8, 12, 16, 24), (7,), (16, 4)])),
        chunk=draw(st.none() | st.integers(1, 9)),
    )
    return logits_KBC, num_classes, Policy((*thresholds, EVERYBODY), measure), plan


@settings(max_examples=200, deadline=None)
@given(cases())
def test_where_nothing_is_rounded_it_is_the_policy_to_the_last_bit(recorded, case) -> None:
    logits_KBC, num_classes, policy, plan = case
    engine = Engine(recorded(len(logits_KBC), num_classes), policy, plan=plan)
    recorded_BKC = logits_KBC.transpose(0, 1)
    expected = engine.policy_under(plan).choose(logits_KBC, num_classes)
    tally = engine.tally()
    same(engine(recorded_BKC, tally=tally), (expected.labels_S, expected.exits_S, expected.confidence_S))
    assert tally.exits_K == expected.exits_S.bincount(minlength=len(logits_KBC)).tolist()
    same(engine(recorded_BKC), (expected.labels_S, expected.exits_S, expected.confidence_S))


def test_a_broken_row_never_leaves_early(recorded) -> None:
    logits_KBC = torch.full((3, 4, 2), torch.nan)
    engine = Engine(recorded(3, 2), Policy((EVERYBODY, EVERYBODY, EVERYBODY)))
    answers = engine(logits_KBC.transpose(0, 1))
    assert answers.exits_B.tolist() == [2] * 4
    assert answers.confidence_B.isnan().all()


def test_stages_run_only_on_the_rows_that_are_left(small, images_of, leaving, counted) -> None:
    network = small("ranet")
    images_BCHW = images_of(network, 33)
    logits_KBC = full(network, images_BCHW)
    policy = leaving(logits_KBC, network.num_classes, (0.3, 0, 0.5))
    rows = counted(network)
    engine = Engine(network, policy, plan=Plan(sizes=(), chunk=None))
    tally = engine.tally()
    answers = engine(images_BCHW, tally=tally)
    reach_K = [int((answers.exits_B >= k).sum()) for k in range(network.num_exits)]
    assert reach_K[0] == 33 > reach_K[1] > reach_K[3] > 0
    assert rows == {"stages": reach_K, "exits": [reach_K[0], 0, *reach_K[2:]]}
    assert (tally.stage_rows_K, tally.head_rows_K) == (rows["stages"], rows["exits"])
    assert tally.images == 33


@pytest.mark.parametrize(("compacts", "drops"), [(None, (1, 1)), ((0,), (1, 0)), ((1,), (0, 1)), ((), (0, 0))])
def test_rows_are_dropped_after_the_exits_that_the_plan_says(recorded, compacts, drops) -> None:
    logits_KBC = torch.randn(3, 20, 2)
    engine = Engine(recorded(3, 2), Policy((0.7, 0.7, EVERYBODY)), plan=Plan(compacts=compacts, sizes=(), chunk=None))
    tally = engine.tally()
    exits_B = engine(logits_KBC.transpose(0, 1), tally=tally).exits_B
    rows_K = [20]
    for k in (1, 2):
        left = int((exits_B >= k).sum())
        assert 0 < left < rows_K[-1]
        rows_K.append(left if drops[k - 1] else rows_K[-1])
    assert tally.stage_rows_K == rows_K


def test_the_last_chunk_is_rounded_up_like_any_other(recorded) -> None:
    engine = Engine(recorded(2, 2), Policy((NOBODY, EVERYBODY)), plan=Plan(chunk=4, sizes=(3,)))
    tally = engine.tally()
    engine(torch.randn(6, 2, 2), tally=tally)
    assert tally.stage_rows_K == [7, 7]


def test_nothing_runs_after_all_have_left(small, images_of, counted) -> None:
    network = small("by hand")
    rows = counted(network)
    engine = Engine(network, Policy((NOBODY, EVERYBODY, NOBODY, EVERYBODY)))
    assert engine(images_of(network, 7)).exits_B.tolist() == [1] * 7
    assert rows == {"stages": [7, 7, 0, 0], "exits": [0, 7, 0, 0]}


@pytest.mark.parametrize("plan", [Plan(), Plan(chunk=4), Plan(compacts=(1,)), Plan(asks=(1,)), Plan(straight=True)])
@pytest.mark.parametrize("call", ["call", "stream", "each exit"])
def test_the_tally_is_what_ran(small, images_of, leaving, counted, plan, call) -> None:
    network = small()
    images_BCHW = images_of(network, 33)
    policy = leaving(full(network, images_BCHW), network.num_classes, (0.4, 0.4))
    rows = counted(network)
    engine = Engine(network, policy, plan=plan)
    tally = engine.tally(timed=True)
    if call == "call":
        exits_B = engine(images_BCHW, tally=tally).exits_B
    elif call == "stream":
        exits_B = torch.cat([answers.exits_B for answers in engine.stream(images_BCHW.split(7), tally=tally)])
    else:
        exits_B = list(engine.each_exit(images_BCHW, tally=tally))[-1].exits_B
    assert (tally.stage_rows_K, tally.head_rows_K) == (rows["stages"], rows["exits"])
    assert tally.exits_K == exits_B.bincount(minlength=3).tolist()
    assert all((seconds > 0) == (ran > 0) for seconds, ran in zip(tally.seconds_K, tally.head_rows_K, strict=True))


def test_operations_are_those_of_what_runs(small, images_of) -> None:
    network = small()
    costs = cost(network)
    stages_K, heads_K = ([count.operations for count in counts] for counts in (costs.stages, costs.heads))
    engine = Engine(network, Policy((NOBODY, EVERYBODY, EVERYBODY)))
    assert engine.operations() == (
        costs.exits[0].operations,
        costs.exits[1].operations - heads_K[0],
        costs.exits[2].operations - heads_K[0],
    )
    tally = engine.tally()
    engine(images_of(network, 1), tally=tally)
    assert tally.operations(stages_K, heads_K) == engine.operations()[1]
    network = small("by hand")
    everybody = Engine(network, Policy((0.5, 0.5, 0.5, EVERYBODY)))
    for shape in (None, (3, 16, 16)):
        assert everybody.operations(image_shape=shape) == tuple(
            count.operations for count in cost(network, shape).exits
        )


def test_each_size_of_batch_has_its_plan(small, images_of, counted) -> None:
    network = small()
    rows = counted(network)
    engine = Engine(network, Policy((EVERYBODY, EVERYBODY, EVERYBODY)))
    engine.use(Form(), {1: Plan(), 8: Plan(straight=True)})
    for num_images in (1, 2, 7, 8, 9):  # by ratio, 2 is nearer to 1 and 7 to 8
        engine(images_of(network, num_images))
    assert rows == {"stages": [27, 24, 24], "exits": [3, 0, 24]}
    assert engine.stream_plan.straight


def test_two_threads_may_call_one_engine(small, images_of, leaving) -> None:
    network = small()
    images_BCHW = images_of(network, 66)
    engine = Engine(network, leaving(full(network, images_BCHW), network.num_classes, (0.4, 0.5)), plan=Plan(chunk=7))
    halves = images_BCHW.split(33)
    expected = [engine(half) for half in halves]
    together = threading.Barrier(2)

    def call(i: int) -> list[Answers]:
        together.wait()
        return [engine(halves[i][: 33 - n % 2]) for n in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for wanted, found in zip(expected, pool.map(call, range(2)), strict=True):
            for n, answers in enumerate(found):
                same(Answers(*(column_B[:32] for column_B in answers)), [column_B[:32] for column_B in wanted])
                assert len(answers.labels_B) == 33 - n % 2


def test_engines_under_other_plans_share_the_program_and_nothing_else(small) -> None:
    engine = Engine(small(), Policy((0.5, 0.5, EVERYBODY)))
    twin = engine.under({1: Plan(asks=())})
    assert twin.program is engine.program
    assert (engine.asks(engine.plan_for(1)), twin.asks(twin.plan_for(1))) == ((0, 1, 2), (2,))


@pytest.mark.parametrize("plan", [Plan(asks=(3,)), Plan(asks=(-1,)), Plan(compacts=(3,))], ids=str)
def test_exits_that_are_not_there_are_refused(small, plan) -> None:
    with pytest.raises(UsageError, match=r"The plan names exit (3|-1); exits are numbered from 0 to 2\."):
        Engine(small(), Policy((0.5, 0.5, EVERYBODY)), plan=plan)


def test_a_policy_for_another_network_is_refused(small) -> None:
    network = small()
    with pytest.raises(UsageError, match="for 2 exits; the network has 3"):
        Engine(network, Policy((0.5, EVERYBODY)))
    with pytest.raises(UsageError, match="found for the network with weights abc"):
        Engine(network, Policy((0.5, 0.5, EVERYBODY), network="abc"))


def test_patience_counts_on_every_exit(small) -> None:
    policy = Policy((1.0, 1.0, EVERYBODY), Measure("patience"))
    with pytest.raises(UsageError, match="Under patience every exit that may answer has to be asked"):
        Engine(small(), policy, plan=Plan(asks=(1,)))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 32, 32), (2, 3, 16), (1, 2, 3, 16, 16)])
def test_images_of_another_shape_are_refused(small, shape) -> None:
    engine = Engine(small(), Policy((0.5, 0.5, EVERYBODY)))
    said = rf"Images must be a batch \[B, 3, 16, 16\], not \[{', '.join(map(str, shape))}\]"
    calls = [
        engine,
        engine.straight(1),
        lambda images: engine.anytime(images, deadline_ms=1),
        lambda images: next(engine.stream([images])),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=said):
            call(torch.zeros(shape))


def test_images_of_bytes_are_refused(small) -> None:
    engine = Engine(small(), Policy((0.5, 0.5, EVERYBODY)))
    with pytest.raises(UsageError, match=r"Images must be floats, normalised as in training, not torch\.uint8"):
        engine(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_patience_straight_on_counts_nothing_and_that_is_no_disagreement(recorded) -> None:
    logits_KBC = torch.randn(3, 9, 2)
    policy, plan = Policy((1.0, 1.0, EVERYBODY), Measure("patience")), Plan(straight=True)
    engine = Engine(recorded(3, 2), policy, plan=plan)
    answers = engine(logits_KBC.transpose(0, 1))
    assert answers.confidence_B.tolist() == [0] * 9
    found = agreement(answers, logits_KBC, engine.policy_under(plan), 2, FLOAT32)
    assert (found.flips, found.wrong) == (0, 0)
    found = agreement(answers, logits_KBC, policy, 2, FLOAT32)
    assert found.wrong > 0


def test_closed_exits_take_nobody_and_the_policy_says_so(small) -> None:
    policy = Policy((0.5, 0.6, EVERYBODY), found={"procedure": "by hand"})
    engine = Engine(small(), policy)
    assert engine.policy_under(Plan()) is policy
    for asks, thresholds in [((0,), (0.5, NOBODY)), ((1,), (NOBODY, 0.6)), ((), (NOBODY, NOBODY))]:
        closed = engine.policy_under(Plan(asks=asks))
        assert closed.thresholds == (*thresholds, EVERYBODY)
        assert closed.found["from"] == policy.found


def test_an_engine_says_which_exits_it_leaves_unasked(small, images_of) -> None:
    """After `tune` nothing but the answers told that exits had been closed."""
    network = small()
    images_BCHW = images_of(network, 40)
    engine = Engine(network, Policy((EVERYBODY, 0.5, EVERYBODY)))
    assert engine.closed == {}
    assert "unasked" not in repr(engine)
    engine.use(Form(), {1: Plan(), 8: Plan(asks=(1,)), 32: Plan(straight=True)})
    assert engine.closed == {8: (0,), 32: (0, 1), "stream": (0, 1)}
    assert "unasked: 0, 1 for stream; 0 for 8; 0, 1 for 32" in repr(engine)
    assert set(engine(images_BCHW).exits_B.tolist()) == {2}
    assert 0 not in engine(images_BCHW[:8]).exits_B
    assert engine(images_BCHW[:1]).exits_B.tolist() == [0]
    nobody = Engine(network, Policy((NOBODY, 0.5, EVERYBODY)), plan=Plan(asks=(1,)))
    assert nobody.closed == {}  # the policy has it closed


def test_order_of_images_does_not_matter(recorded) -> None:
    logits_KBC = torch.randn(3, 6, 2)
    engine = Engine(recorded(3, 2), Policy((0.7, 0.6, EVERYBODY)))
    wanted = engine(logits_KBC.transpose(0, 1))
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 37):
        same(engine(logits_KBC.transpose(0, 1)[list(order)]), [column_B[list(order)] for column_B in wanted])


def test_a_fresh_tally_is_empty(small) -> None:
    assert Engine(small(), Policy((0.5, 0.5, EVERYBODY))).tally() == Tally(3)


def test_a_certified_policy_is_asked_whole_or_not_at_all(small) -> None:
    certified = Policy((0.9, 0.9, EVERYBODY), found={CERTIFICATE: {"risk": 0.01}})
    for asks in ((0,), (1, 2)):
        with pytest.raises(UsageError, match="certified"):
            Engine(small(), certified, plan=Plan(asks=asks))
    for plan in (Plan(), Plan(asks=(0, 1)), Plan(asks=()), Plan(straight=True)):
        Engine(small(), certified, plan=plan)


def test_plans_may_be_written_with_lists_and_there_must_be_one(small) -> None:
    engine = Engine(small(), Policy((0.9, 0.9, EVERYBODY)), plan=Plan(asks=[0], sizes=[4], compacts=[0]))
    assert engine.plan_for(3) == Plan(asks=(0,), sizes=(4,), compacts=(0,))
    with pytest.raises(UsageError, match="one plan"):
        engine.use(Form(), {})
    for use in (lambda plans: engine.use(Form(), plans), engine.under):
        with pytest.raises(UsageError, match="size of batches must be a whole number of at least 1, not 0"):
            use({0: Plan()})
