import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import UsageError
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import Answers, Engine, Plan
from offramp.runtime.plan import Tally
from offramp.runtime.rows import Left, Rows
from offramp.runtime.straight import Straight
from offramp.runtime.stream import Queues

POLICY = Policy((0.7, NOBODY, 0.6, EVERYBODY))
POLICY_3 = Policy((0.7, 0.6, EVERYBODY))
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 5, 13]), max_size=12)


def same(answers: Answers, expected: Answers) -> None:
    for got_B, wanted_B in zip(answers, expected, strict=True):
        torch.testing.assert_close(got_B, wanted_B, rtol=0, atol=0)


def logits(num_images: int, num_exits: int = 4) -> Tensor:
    """What the recorded network takes for images, `[B, K, 2]`: some leave early, some late."""
    return torch.randn(num_images, num_exits, 2, generator=torch.Generator().manual_seed(3))


@settings(max_examples=200, deadline=None)
@given(
    SIZES,
    st.integers(1, 6) | st.none(),
    st.integers(1, 30) | st.none(),
    st.sampled_from(["softmax", "patience"]),
    st.booleans(),
)
def test_answers_are_those_of_the_call_in_order(recorded, sizes, chunk, window, measure, straight) -> None:
    policy = POLICY if measure == "softmax" else Policy((1.0, NOBODY, 2.0, EVERYBODY), Measure("patience"))
    engine = Engine(recorded(4, 2), policy, plan=Plan(chunk=chunk, straight=straight))
    images_BKC = logits(sum(sizes))
    tally = engine.tally()
    found = list(engine.stream(images_BKC.split(sizes), window=window, tally=tally))
    assert len(found) == len(sizes)
    for answers, batch_BKC in zip(found, images_BKC.split(sizes), strict=True):
        same(answers, engine(batch_BKC))
    assert tally.exits_K == engine(images_BKC).exits_B.bincount(minlength=4).tolist()


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 30), st.booleans())
def test_each_position_is_given_exactly_once(recorded, sizes, chunk, window, straight) -> None:
    engine = Engine(recorded(4, 2), POLICY, plan=Plan(chunk=chunk, straight=straight))
    images_BKC = logits(sum(sizes))
    expected = engine(images_BKC)
    seen = []
    for positions_B, answers in engine.as_ready(images_BKC.split(sizes), window=window):
        same(answers, Answers(*(column_B[positions_B] for column_B in expected)))
        seen += positions_B.tolist()
    assert sorted(seen) == list(range(sum(sizes)))


@pytest.mark.parametrize("plan", [Plan(chunk=8), Plan(chunk=8, straight=True)], ids=["exits", "straight"])
def test_a_networks_own_answers(small, images_of, leaving, device, plan) -> None:
    network = small()
    images_BCHW = images_of(network, 60).double()
    network = network.double()
    with torch.no_grad():
        policy = leaving(network(images_BCHW), network.num_classes, (0.4, 0.5))
    engine = Engine(network, policy, plan=plan, device=device)
    expected = engine(images_BCHW)
    found = list(engine.stream(images_BCHW.split([1, 0, 20, 7, 30, 2])))
    for column, (got, wanted_B) in enumerate(zip(zip(*found, strict=True), expected, strict=True)):
        assert got[0].device.type == "cpu"
        torch.testing.assert_close(torch.cat(got), wanted_B.cpu(), rtol=0, atol=1e-12 if column == 2 else 0)


class _Watched(Queues):
    """Notes the most images that ever waited before each stage."""

    most: list[int]

    def _step(self, k: int) -> Iterator[Left]:
        for depth, queue in enumerate(self.waiting):
            self.most[depth] = max(self.most[depth], len(queue))
            for piece in queue.chunks:
                rows = piece if isinstance(piece, Rows) else piece.rows()
                assert rows.places_B is None
                assert rows.run == len(rows) <= self.chunk
        yield from super()._step(k)


@pytest.mark.parametrize("thresholds", [(0.7, 0.6), (NOBODY, NOBODY), (EVERYBODY, 0.5), (0.99, 0.55)], ids=str)
@pytest.mark.parametrize("batch", [1, 4, 11])
@pytest.mark.parametrize("window", [2, 1000])
def test_less_than_two_chunks_wait_before_any_stage_but_the_first(recorded, thresholds, batch, window) -> None:
    engine = Engine(recorded(3, 2), Policy((*thresholds, EVERYBODY)))
    chunk = 4
    queues = _Watched(engine, Plan(chunk=chunk), window, None)
    queues.most = [0] * len(queues.waiting)
    for images_BKC in logits(150, 3).split(batch):
        queues.put(images_BKC)
        list(queues.run())
        assert (
            max(map(len, queues.waiting)) < chunk
        )  # so that at most K (chunk - 1) are under way when the next batch is read
    list(queues.drain())
    assert not any(map(len, queues.waiting))
    assert queues.most[0] < chunk + batch
    assert max(queues.most[1:], default=0) < 2 * chunk


@pytest.mark.parametrize("window", [1, 5, 20])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("way", ["as ready", "in turn"])
@pytest.mark.parametrize("straight", [False, True])
def test_however_long_the_stream_none_waits_longer_than_the_window(recorded, window, batch, way, straight) -> None:
    rare = logits(400)
    rare[:, 0, 0] = 10.0  # nearly all leave at once
    rare[::17] = 0.0  # and a few at the last exit, where nobody joins them
    engine = Engine(recorded(4, 2), POLICY, plan=Plan(chunk=64, straight=straight))
    read, delivered = 0, set()
    whole = 0 if way == "as ready" else batch - 1  # in turn, an image waits for the others of its batch

    def long() -> Iterator[Tensor]:
        nonlocal read
        for i in itertools.count():
            assert delivered >= set(range(read - window - whole))  # asked for more: so long none may have waited
            if read > 300:
                return
            yield rare[range(read, read + batch)] if i % 3 else rare[:0]
            read += batch if i % 3 else 0

    if way == "as ready":
        found = (positions_B.tolist() for positions_B, _ in engine.as_ready(long(), window=window))
    else:
        numbers = itertools.count()
        found = ([next(numbers) for _ in answers.labels_B] for answers in engine.stream(long(), window=window))
    for positions in found:
        delivered.update(positions)
    assert delivered == set(range(read))


def test_batches_are_read_only_as_far_as_needed(recorded) -> None:
    engine = Engine(recorded(3, 2), Policy((EVERYBODY, NOBODY, EVERYBODY)), plan=Plan(chunk=4))
    read = 0

    def batches() -> Iterator[Tensor]:
        nonlocal read
        for read in itertools.count(1):  # noqa: B007
            yield torch.zeros(4, 3, 2)

    stream = engine.stream(batches())
    assert read == 0
    for n in range(1, 6):
        assert next(stream).exits_B.tolist() == [0] * 4
        assert read == n


def test_an_error_of_the_batches_reaches_the_caller(recorded) -> None:
    engine = Engine(recorded(3, 2), Policy((EVERYBODY, NOBODY, EVERYBODY)), plan=Plan(chunk=2))

    def broken() -> Iterator[Tensor]:
        yield torch.zeros(2, 3, 2)
        raise OSError("disk full")

    for stream in (engine.stream(broken()), engine.as_ready(broken())):
        next(stream)
        with pytest.raises(OSError, match="disk full"):
            next(stream)


@pytest.mark.parametrize("way", ["stream", "as_ready"])
def test_closed_early_it_stops_reading_and_leaves_the_engine_usable(recorded, way) -> None:
    engine = Engine(recorded(3, 2), POLICY_3, plan=Plan(chunk=2))
    read, closed = 0, False

    def batches() -> Iterator[Tensor]:
        nonlocal read, closed
        try:
            while True:
                read += 1
                yield logits(2, 3)
        finally:
            closed = True

    stream = getattr(engine, way)(batches())
    next(stream)
    before = read
    stream.close()
    assert (read, closed) == (before, True)
    assert not torch.is_inference_mode_enabled()
    assert len(list(engine.stream([logits(3, 3)]))) == 1


@pytest.mark.parametrize("straight", [False, True])
def test_neither_reader_nor_caller_is_put_into_inference_mode(recorded, straight) -> None:
    engine = Engine(recorded(3, 2), POLICY_3, plan=Plan(chunk=4 if straight else 2, straight=straight))
    kept = []

    def batches() -> Iterator[Tensor]:
        for images_BKC in logits(6, 3).split(2):
            kept.append(images_BKC + 1)
            yield kept[-1]

    for answers in engine.stream(batches()):
        assert not torch.is_inference_mode_enabled()
        answers.labels_B.add_(1)  # the caller's own
    weight = torch.ones(2, requires_grad=True)
    sum((images_BKC * weight).sum() for images_BKC in kept).backward()  # batches may be trained on
    assert weight.grad is not None


def test_no_gradients_are_kept_track_of(recorded) -> None:
    images_BKC = logits(6, 3).requires_grad_()
    engine = Engine(recorded(3, 2), POLICY_3, plan=Plan(chunk=2))
    for answers in (engine(images_BKC), *engine.stream([images_BKC]), *engine.each_exit(images_BKC)):
        assert not answers.confidence_B.requires_grad


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [3, 0], [0, 3], [0, 3, 0, 0]])
@pytest.mark.parametrize("straight", [False, True])
def test_empty_batches_have_empty_answers(recorded, sizes, straight) -> None:
    engine = Engine(recorded(3, 2), POLICY_3, plan=Plan(straight=straight))
    images_BKC = logits(sum(sizes), 3)
    found = list(engine.stream(images_BKC.split(sizes) if sizes else []))
    assert [len(answers.labels_B) for answers in found] == sizes
    assert all(answers.labels_B.dtype == answers.exits_B.dtype == torch.int64 for answers in found)


@pytest.mark.parametrize("threshold", [2.0, NOBODY])
def test_survivors_of_several_batches_share_a_run_of_a_segment(recorded, threshold) -> None:
    """Exits that take nobody because they are asked in vain end a segment; closed ones do not."""
    engine = Engine(recorded(3, 2), Policy((threshold, threshold, EVERYBODY)), plan=Plan(chunk=16, sizes=()))
    runs: list[tuple[int, int, int]] = []
    segment = engine.program.segment

    def noted(first: int, last: int, carry: tuple[Tensor, ...]):
        runs.append((first, last, len(carry[0])))
        return segment(first, last, carry)

    engine.program.segment = noted  # type: ignore[method-assign]
    list(engine.stream(logits(40, 3).split(3)))
    segments = [(0, 2)] if threshold == NOBODY else [(0, 0), (1, 1), (2, 2)]
    assert runs == [(*ends, rows) for rows in (16, 16, 8) for ends in segments]


@pytest.mark.parametrize("straight", [False, True])
def test_a_window_below_1_is_refused(recorded, straight) -> None:
    with pytest.raises(UsageError, match="window must be at least 1, not 0"):
        next(Engine(recorded(3, 2), POLICY_3, plan=Plan(straight=straight)).stream([], window=0))


@pytest.fixture
def called(monkeypatch) -> list[tuple[Straight, Tensor, int]]:
    """Every call of a `Straight`: which one, a copy of the images that it is given, and where these are in memory."""
    calls: list[tuple[Straight, Tensor, int]] = []
    call = Straight.__call__

    def noted(straight: Straight, images_BKC: Tensor, tally: Tally | None = None) -> Answers:
        calls.append((straight, images_BKC.clone(), images_BKC.data_ptr()))
        return call(straight, images_BKC, tally)

    monkeypatch.setattr(Straight, "__call__", noted)
    return calls


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([4, 4, 4, 4, 4], [8, 8, 4]),
        ([3] * 8, [8, 8, 8]),
        ([8, 20, 3, 8, 5, 5], [8, 20, 3, 8, 8, 2]),
        ([5], [5]),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["stream", "as_ready"])
@pytest.mark.parametrize("counting", [False, True])
def test_straight_on_a_stream_is_the_engines_straight_on_gathered_batches(
    recorded, called, sizes, runs, way, counting
) -> None:
    engine = Engine(recorded(4, 2), POLICY, plan=Plan(straight=True, chunk=8))
    engine.advance = None  # type: ignore[assignment,method-assign]  # no stage is run in another way
    images_BKC = logits(sum(sizes))
    batches = images_BKC.split(sizes)
    tally = engine.tally() if counting else None
    list(getattr(engine, way)(batches, tally=tally))
    assert all(straight is engine.straight(None) for straight, _, _ in called)
    assert [len(given) for _, given, _ in called] == runs
    assert torch.equal(torch.cat([given for _, given, _ in called]), images_BKC)
    whole = [batch.data_ptr() for batch in batches if len(batch) >= 8]
    assert [at for _, given, at in called if at in {batch.data_ptr() for batch in batches}] == whole  # not copied
    if tally is not None:
        assert tally.stage_rows_K == [sum(sizes)] * 4
        assert tally.head_rows_K == tally.exits_K == [0, 0, 0, sum(sizes)]


def test_a_reader_may_use_its_buffer_again(recorded) -> None:
    engine = Engine(recorded(4, 2), POLICY, plan=Plan(straight=True, chunk=8))
    images_BKC, buffer_BKC = logits(15), torch.empty(3, 4, 2)

    def batches() -> Iterator[Tensor]:
        for batch_BKC in images_BKC.split(3):
            yield buffer_BKC.copy_(batch_BKC)

    found = Answers(*map(torch.cat, zip(*engine.stream(batches()), strict=True)))
    same(found, engine(images_BKC))


def test_straight_on_a_stream_refuses_what_a_call_refuses(small, images_of) -> None:
    network = small()
    engine = Engine(network, POLICY_3, plan=Plan(straight=True, chunk=8))
    good = images_of(network, 3)
    for bad, said in ((good[:, :2], "Images must be a batch"), (good.to(torch.uint8), "Images must be floats")):
        with pytest.raises(UsageError, match=said):
            list(engine.stream([good, bad]))


def test_straight_on_images_of_several_types_lose_no_digits(recorded) -> None:
    network = recorded(4, 2).double()
    network.register_parameter("its_type", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    engine = Engine(network, POLICY, plan=Plan(straight=True, chunk=8))
    batches = [logits(3), logits(5).double() / 3, logits(2)]
    for answers, batch_BKC in zip(engine.stream(batches), batches, strict=True):
        same(answers, engine(batch_BKC))


def test_straight_on_needs_one_size_of_images_in_a_chunk(recorded) -> None:
    engine = Engine(recorded(3, 2), POLICY_3, plan=Plan(straight=True, chunk=8))
    with pytest.raises(UsageError, match="must all have one size"):
        list(engine.stream([torch.zeros(2, 3, 2), torch.zeros(2, 3, 4)]))


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("measure", ["softmax", "patience"])
def test_no_images_have_answers_of_the_type_and_the_device_of_others(recorded, device, measure, straight) -> None:
    policy = Policy((1.0, 1.0, 2.0, EVERYBODY), Measure(measure))
    network = recorded(4, 2).double()
    network.register_parameter("its_type", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    engine = Engine(network, policy, plan=Plan(straight=straight), device=device)
    images_BKC = logits(3).double()
    for got, wanted_B in zip(engine(images_BKC[:0]), engine(images_BKC), strict=True):
        assert (len(got), got.dtype, got.device) == (0, wanted_B.dtype, wanted_B.device)
    first, *_ = engine.stream([images_BKC[:0], images_BKC])
    assert [column_B.dtype for column_B in first] == [column_B.dtype for column_B in engine(images_BKC)]
    assert {column_B.device.type for column_B in first} == {"cpu"}


@pytest.mark.parametrize("straight", [False, True])
def test_images_of_another_size_are_refused_between_full_chunks_too(recorded, straight) -> None:
    engine = Engine(recorded(4, 2), Policy((EVERYBODY,) * 4), plan=Plan(chunk=4, straight=straight))
    sizes = [torch.zeros(4, 4, 2), torch.zeros(4, 5, 2)]
    with pytest.raises(UsageError, match=r"must all have one size; \[4, 2\] is followed by \[5, 2\]"):
        list(engine.stream(sizes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("straight", [False, True])
def test_a_reader_may_fill_one_pinned_buffer_again_and_again(recorded, straight) -> None:
    engine = Engine(recorded(4, 2), POLICY, plan=Plan(chunk=64, straight=straight), device="cuda")
    images_BKC = logits(64 * 20)
    buffer_BKC = torch.empty(64, 4, 2).pin_memory()
    left = torch.randn(4096, 4096, device="cuda")

    def batches() -> Iterator[Tensor]:
        nonlocal left
        for batch_BKC in images_BKC.split(64):
            left = left @ left  # the device is busy when it is told to copy
            buffer_BKC.copy_(batch_BKC)
            yield buffer_BKC

    found = [answers.labels_B for answers in engine.stream(batches())]
    assert torch.equal(torch.cat(found), engine(images_BKC).labels_B.cpu())
