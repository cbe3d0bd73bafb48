import pytest
import torch

from offramp.commands.bench import timing as bench_timing
from offramp.commands.bench.timing import (
    STREAM_BYTES,
    Fed,
    Feed,
    Rivals,
    Turn,
    in_the_time,
    measure,
    on_test,
    round_of,
    whole,
)
from offramp.commands.sample import pool
from offramp.costs import cost
from offramp.evaluation import record
from offramp.files import load
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.runtime import Engine, Form, Plan
from offramp.runtime.rows import joined

EXIT_MS = (1.0, 2.0, 3.0)


@pytest.fixture
def network(make_run):
    return load(make_run())


@pytest.fixture
def engine(network, tiny_parts):
    """A third of the images leaves at the first exit, the others at the last."""
    test = record(network, tiny_parts.test)
    confidence_KS, _ = Policy((0, 0, EVERYBODY)).measure.over(test.logits_KSC, test.num_classes)
    # Between two images: one that stands on a threshold leaves or stays as rounding has it.
    return Engine(network, Policy((confidence_KS[0].quantile(0.66).item(), NOBODY, EVERYBODY)))


@pytest.fixture
def images(tiny_parts):
    return pool(tiny_parts.test, 100)


def always(seconds):
    """In place of `take_turns`: every variant is called once, and its seconds are made up."""

    def turns(variants, rounds, warmup=2, after_round=None):
        for variant in variants.values():
            for _ in range(rounds):
                variant()
        return {name: [seconds(name)] * rounds for name in variants}

    return turns


@pytest.mark.parametrize(
    ("batch", "limit", "size", "images"),
    [
        (1, None, 1, 100),
        (32, None, 32, 256),
        (100, None, 100, 200),
        (256, None, 256, 256),
        (1000, None, 1000, 1000),
        (None, None, 32, 4096),
        (1, 7, 1, 7),
        (32, 100, 32, 96),
        (32, 5, 32, 32),
        (32, 1000, 32, 256),
        (None, 64, 32, 64),
    ],
)
def test_a_round_is_whole_batches(batch, limit, size, images):
    assert round_of(batch, limit, (3, 32, 32)) == (size, images)


@pytest.mark.parametrize("side", [32, 224, 512, 4000])
def test_a_stream_of_large_images_fits_into_memory(side):
    size, images = round_of(None, None, (3, side, side))
    image = torch.empty((3, side, side), device="meta").nbytes
    assert size <= images <= 4096
    assert images * image <= STREAM_BYTES or images == size  # at least one batch
    assert images == 4096 or (images + size) * image > STREAM_BYTES  # and no fewer than fit
    assert round_of(256, None, (3, side, side)) == (256, 256)


def test_a_feed_begins_again_where_images_end(images):
    feed = Feed.of(32, images, 100)
    assert [len(batch) for batch in feed.batches] == [32, 32, 32]
    assert feed.images == 96
    assert torch.equal(feed.positions_S[40:80], images.positions_S)
    assert torch.equal(torch.cat(feed.batches)[40:80], images.images_SCHW)
    assert len(feed.offers) == 3
    stream = Feed.of(None, images, 64)
    assert (stream.name, len(stream.batches)) == ("stream", 2)
    assert torch.equal(stream.offers[0], torch.cat(stream.batches))
    memory = {one.untyped_storage().data_ptr() for one in (*stream.batches, *stream.offers)}
    assert len(memory) == 1  # of all rivals together: no copies


def test_a_turn_makes_all_calls_in_order_and_keeps_their_seconds():
    seen = []
    turn = Turn([lambda: seen.append("a"), lambda: seen.append("b")], wait=lambda: seen.append("wait"))
    total = turn()
    assert seen == ["a", "wait", "b", "wait"]
    assert len(turn.rounds) == 1
    assert total == sum(turn.rounds[0]) > 0


def test_rivals_get_the_fastest_form_and_then_the_fastest_chunk(engine, images, monkeypatch):
    rivals = Rivals(engine, [Form(), Form(precision="bf16")])
    feed = Feed.of(256, images, None)
    tried = []

    def turns(variants, rounds, warmup, after_round):
        tried.append(len(variants))
        best = {2: 0, 6: 3}[len(variants)]  # of two forms the engine's own, of six chunks that of 32
        return {name: [1.0 if number == best else 2.0] * rounds for number, name in enumerate(variants)}

    monkeypatch.setattr(bench_timing, "take_turns", turns)
    fastest = rivals.fastest(feed)
    assert tried == [2, 6]  # all for the last exit; the others are run as it is
    assert [(rival.exit, rival.chunk) for rival in fastest] == [(0, 32), (1, 32), (2, 32)]
    assert all(rival.program is engine.program for rival in fastest)


def test_rounds_have_as_many_images_as_fit_into_the_time(engine, images):
    image = images.images_SCHW[:1]
    few, many = (in_the_time(engine, 8, image, 15, seconds) for seconds in (0.5, 50.0))
    assert 1 <= few < many
    assert in_the_time(engine, None, image, 15, 1e-9) == 1


def test_single_images_have_no_chunks(engine, images):
    assert [rival.chunk for rival in Rivals(engine, []).fastest(Feed.of(1, images, 3))] == [None] * 3


def test_rivals_answer_as_their_exit_does(engine, images, network):
    feed = Feed.of(32, images, 96)
    logits_KBC = torch.cat([network(batch) for batch in feed.batches], 1)
    for k, rival in enumerate(Rivals(engine, []).fastest(feed)):
        labels_B = joined(rival(batch) for batch in feed.batches).labels_B
        expected_B = engine.policy.log_probs(k, logits_KBC[k], network.num_classes).argmax(-1)
        assert torch.equal(labels_B, expected_B)


@pytest.mark.parametrize("batch", [1, 8, None])
def test_made_up_seconds_become_figures(batch, engine, images, network, tiny_parts, monkeypatch):
    test, costs = record(network, tiny_parts.test), cost(network)
    feed = Feed.of(batch, images, 40)
    rivals = Rivals(engine, []).fastest(feed)
    known = {"engine": 2.0, "accounted": 4.0, "0": 1.0, "1": 5.0, "2": 6.0}
    monkeypatch.setattr(bench_timing, "take_turns", always(known.__getitem__))
    mode = measure(engine, feed, rivals, test, costs, 5, EXIT_MS)
    assert mode.name == ("stream" if batch is None else str(batch))
    assert mode.engine.ms == pytest.approx(2000 / feed.images)
    assert (mode.engine.times, mode.engine.low, mode.engine.high) == (3, 3, 3)
    assert [speed.times for speed in mode.exits] == [6, 1.2, 1]
    assert (mode.engine.latency is not None) == (batch == 1)
    # What is promised: the operations of those that leave at the first exit and at the last, heads in between not run.
    exits_S = engine.policy.choose(test.logits_KSC, test.num_classes).exits_S[feed.positions_S]
    first = costs.stages[0].operations + costs.heads[0].operations
    whole = first + sum(costs.stages[k].operations for k in (1, 2)) + costs.heads[2].operations
    spent = torch.where(exits_S == 0, first, whole).double().mean().item()
    assert set(exits_S.tolist()) == {0, 2}
    assert mode.promised == pytest.approx(costs.path[-1].operations / spent)
    assert mode.realised == pytest.approx(3 / mode.promised)
    assert mode.asks == (1, 3)
    assert mode.agreement.images == feed.images
    assert mode.agreement.wrong == 0
    left = (exits_S == 0).double().mean().item()
    assert left * mode.exit_ms[0] + (1 - left) * mode.exit_ms[2] == pytest.approx(mode.engine.ms)
    assert mode.exit_ms[2] == pytest.approx(3 * mode.exit_ms[0])
    spread = mode.account
    assert spread.stages + spread.slower + spread.exits + spread.rest == pytest.approx(1)
    assert 0 < spread.exits < spread.rest  # the true seconds are a small part of the made-up four


def test_a_plan_that_runs_straight_on_keeps_the_promise_of_the_policy(engine, images, network, tiny_parts):
    """What leaving early would have saved is not forgotten where the engine does not do it."""
    test, costs = record(network, tiny_parts.test), cost(network)
    feed = Feed.of(8, images, 40)
    before = measure(engine, feed, Rivals(engine, []).fastest(feed), test, costs, 5, EXIT_MS)
    engine.use(Form(), {1: Plan(straight=True)})
    after = measure(engine, feed, Rivals(engine, []).fastest(feed), test, costs, 5, EXIT_MS)
    assert before.promised == after.promised > 1
    assert after.asks == (3,)
    assert after.operations == costs.path[-1].operations > before.operations
    assert after.accuracy.drop == 0
    assert after.account.idle_rows == 0
    assert after.exit_ms == EXIT_MS  # nothing was measured that would say more


def test_streams_and_batches_are_fed_to_the_engine_in_order(engine, images, network, tiny_parts):
    test = record(network, tiny_parts.test)
    for batch in (8, None):
        feed = Feed.of(batch, images, 64)
        answers = joined(Fed(engine, feed).answers())
        chosen = engine.policy.choose(test.logits_KSC[:, feed.positions_S], test.num_classes)
        assert torch.equal(answers.labels_B, chosen.labels_S)
        assert torch.equal(answers.exits_B, chosen.exits_S)


def test_what_a_policy_does_on_the_test_set(engine, network, tiny_parts):
    test, costs = record(network, tiny_parts.test), cost(network)
    chosen = engine.policy.choose(test.logits_KSC, test.num_classes)
    found = on_test(chosen.labels_S, chosen.exits_S, engine.policy, engine.operations(), test)
    assert found.accuracy.top1 == pytest.approx(100 * (chosen.labels_S == test.targets_S).double().mean().item())
    last_S = test.logits_KSC[-1, :, : test.num_classes].argmax(-1) == test.targets_S
    assert found.accuracy.drop == pytest.approx(100 * last_S.double().mean().item() - found.accuracy.top1)
    assert set(found.operations_S.tolist()) == {engine.operations()[0], engine.operations()[2]}
    assert costs.path[0].operations == engine.operations()[0]
    right = on_test(test.targets_S, chosen.exits_S, engine.policy, engine.operations(), test)
    assert (right.accuracy.top1, right.operations_S.tolist()) == (100, found.operations_S.tolist())


def test_the_whole_policy_is_answered_under_a_plan_that_closes_no_exit(engine):
    assert whole(engine) is engine
    engine.use(Form(), {1: Plan()}, Plan(straight=True, chunk=64))
    assert whole(engine).stream_plan == Plan(chunk=64)
    assert whole(engine).program is engine.program
