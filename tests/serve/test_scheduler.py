"""The scheduler on a network whose images are the logits of its exits, mostly with a clock that segments move on.

K exits, N classes, S images.
"""

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp import backbones
from offramp.errors import UsageError
from offramp.network import Carry
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import Answers as EngineAnswers
from offramp.runtime import Engine, Form, Plan
from offramp.runtime.plan import segments
from offramp.runtime.program import Program
from offramp.serve.contract import Answer, RefusedError, Request, Served, Step
from offramp.serve.lane import AUDIT_WAIT, HELD
from offramp.serve.model import Model
from offramp.serve.scheduler import Scheduler

K, N = 4, 3
LADDER = tuple(Policy((*thresholds, EVERYBODY)) for thresholds in [(0.8, 0.7, 0.75), (0.6, 0.7, 0.6), (0.5, 0.5, 0.5)])
TO_THE_END = (Policy((*[NOBODY] * (K - 1), EVERYBODY)),)
Outcome = Answer | RefusedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorded(Program):
    """Images `[1, K, N]` are the logits of the exits; a segment takes `seconds` on the clock, and `more` a row."""

    def __init__(self, clock: Clock, seconds: float = 0.001, more: float = 0.0) -> None:
        self.form, self.device, self.dtype = Form(), torch.device("cpu"), torch.float32
        self.num_exits, self.num_classes, self.image_shape = K, N, (1, K, N)
        self.clock, self.seconds, self.more = clock, seconds, more
        self.runs: list[tuple[int, int]] = []  # first stage, rows

    def _enter(self, images_BCHW: Tensor) -> Carry:
        return (images_BCHW,)

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        self.runs.append((first, len(carry[0])))
        self.clock.now += self.seconds + self.more * len(carry[0])
        return carry[0][:, 0, last].clone(), carry

    def straight(self, images_BCHW: Tensor, exit: int) -> Tensor:
        raise AssertionError

    def single(self, policy: Policy, asks: tuple[int, ...]) -> None:
        raise AssertionError


class Guard:
    def __init__(self) -> None:
        self.alarm: str | None = None
        self.seen: list[bool] = []

    def observe(self, disagreed: bool) -> None:
        self.seen.append(disagreed)


def model_of(
    program: Program,
    ladder: Sequence[Policy] = LADDER,
    *,
    chunk: int = 4,
    name: str = "one",
    guards: Sequence[Guard | None] = (),
) -> Model:
    served = Served(
        name, name, ("a", "b", "c"), (1, K, N), tuple(ladder), (None,) * len(ladder), (0.25, 0.5, 0.75, 1.0)
    )
    asks = [k for k in range(K - 1) if min(policy.thresholds[k] for policy in ladder) != NOBODY]
    plan = Plan(chunk=chunk, sizes=tuple(size for size in (1, 2, 4, 8) if size <= chunk))
    return Model(served, program, segments((*asks, K - 1)), plan, guards=guards)


def images(number: int, seed: int = 0) -> Tensor:
    """Some leave early, some late: `[S, 1, K, N]`."""
    return 1.5 * torch.randn(number, 1, K, N, generator=torch.Generator().manual_seed(seed))


def chosen(policy: Policy, images_S1KN: Tensor) -> tuple[list[int], list[int]]:
    """Exits (from 1) and labels."""
    choice = policy.choose(images_S1KN[:, 0].permute(1, 0, 2), N)
    return (choice.exits_S + 1).tolist(), choice.labels_S.tolist()


class Desk:
    """A scheduler without its thread, and what came of every image."""

    def __init__(self, model: Model | None = None, clock: Clock | None = None, **options: Any) -> None:
        self.clock = clock or Clock()
        self.program = Recorded(self.clock)
        self.scheduler = Scheduler(model or model_of(self.program), clock=self.clock, start=False, **options)
        self.scheduler.turn()  # warms up
        self.program.runs.clear()
        self.order: list[int] = []
        self.outcomes: dict[int, list[Outcome]] = {}

    def submit(self, number: int, image: Tensor, **more: Any) -> Callable[[], None]:
        def on_done(outcome: Outcome) -> None:
            self.order.append(number)
            self.outcomes.setdefault(number, []).append(outcome)

        return self.scheduler.submit(Request(image, on_done, **more))

    def finish(self) -> None:
        while self.scheduler.turn():
            pass

    def answer(self, number: int) -> Answer:
        (outcome,) = self.outcomes[number]
        assert isinstance(outcome, Answer)
        return outcome

    def refusal(self, number: int) -> RefusedError:
        (outcome,) = self.outcomes[number]
        assert isinstance(outcome, RefusedError)
        return outcome


MEASURES = [Measure(), Measure("entropy"), Measure("margin", temperatures=(1.0, 2.0, 0.5, 1.0)), Measure("patience")]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_answers_are_those_of_the_rungs_policy(measure) -> None:
    images_S1KN = images(300)
    confidence_KS, _ = measure.over(images_S1KN[:, 0].permute(1, 0, 2), N)
    ladder = [
        Policy((*(confidence_KS[k].quantile(share).item() for k in range(K - 1)), EVERYBODY), measure)
        for share in (0.8, 0.5, 0.2)
    ]
    desk = Desk(max_waiting=1000)
    desk.scheduler.replace(model_of(desk.program, ladder))
    dice = random.Random(1)
    rungs = [dice.randint(1, 3) for _ in range(300)]
    for number, image in enumerate(images_S1KN):
        desk.submit(number, image, rung=rungs[number], on_step=None if dice.random() < 0.8 else lambda step: None)
        if dice.random() < 0.3:
            desk.scheduler.turn()
    desk.finish()
    wanted = [chosen(policy, images_S1KN) for policy in ladder]
    for number, rung in enumerate(rungs):
        answer, (exits, labels) = desk.answer(number), wanted[rung - 1]
        assert (answer.exit, answer.label, answer.rung) == (exits[number], labels[number], rung)
        assert answer.operations == 0.25 * answer.exit
        assert answer.in_time
    assert {rows for _, rows in desk.program.runs} <= {1, 2, 4}


OPERATIONS = ["submit"] * 6 + ["turn"] * 4 + ["deadline", "deadline", "steps", "cancel", "pass", "replace"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(OPERATIONS), max_size=120), st.integers(0, 10**6), st.sampled_from([0.0, 0.001, 10.0]))
def test_every_accepted_image_is_answered_once_and_never_early(operations, seed, grace) -> None:
    """Under any order of events: by the model that took it in, and by no earlier exit than its policy says."""
    dice = random.Random(seed)
    guard = Guard()
    desk = Desk(max_waiting=12, max_wait_ms=2, audit=0.5)
    models = [model_of(desk.program, LADDER[:1], guards=[guard]), model_of(desk.program, name="two")]
    desk.scheduler.replace(models[0])
    images_S1KN = images(len(operations), seed)
    taken: dict[int, tuple[Served, float | None]] = {}
    cancels: dict[int, Callable[[], None]] = {}
    given_up: set[int] = set()
    refused: list[str] = []
    for number, operation in enumerate(operations):
        if operation == "turn":
            desk.scheduler.turn()
        elif operation == "pass":
            desk.clock.now += 0.003
        elif operation == "replace":
            desk.scheduler.replace(dice.choice(models))
        elif operation == "cancel" and cancels:
            other = dice.choice(list(cancels))
            cancels[other]()
            if other not in desk.outcomes:
                given_up.add(other)
        elif operation in ("submit", "deadline", "steps"):
            deadline = desk.clock.now + dice.choice([0, 0.001, 0.004]) if operation == "deadline" else None
            steps = (lambda step: None) if operation == "steps" else None
            served = desk.scheduler.served
            try:
                cancels[number] = desk.submit(
                    number, images_S1KN[number], deadline=deadline, on_step=steps, rung=dice.randint(1, 3)
                )
            except RefusedError as error:
                refused.append(error.reason)
                assert sum(desk.scheduler.snapshot().waiting_K) <= 12
            else:
                taken[number] = served, deadline
    assert set(refused) <= {"full"}
    desk.scheduler.drain(grace)
    desk.finish()
    all_answered = desk.scheduler.drain(0)
    assert desk.outcomes.keys() == taken.keys() - given_up
    refused_at_the_end = 0
    for number, (served, deadline) in taken.items():
        if number in given_up:
            continue
        (outcome,) = desk.outcomes[number]
        if isinstance(outcome, RefusedError):
            assert outcome.reason == ("draining" if deadline is None else "deadline") or outcome.reason == "draining"
            refused_at_the_end += outcome.reason == "draining"
            continue
        exits, labels = chosen(served.ladder[outcome.rung - 1], images_S1KN)
        assert outcome.fingerprint == served.fingerprint
        if outcome.in_time:
            assert (outcome.exit, outcome.label) == (exits[number], labels[number])
        else:
            assert deadline is not None
            assert outcome.exit < exits[number]
    assert all_answered == (refused_at_the_end == 0)
    assert sum(desk.scheduler.snapshot().waiting_K) == desk.scheduler._taken() == 0


def test_the_oldest_goes_first() -> None:
    desk = Desk(model_of(program := Recorded(Clock()), TO_THE_END), program.clock)
    for number, image in enumerate(images(11)):
        desk.submit(number, image, on_step=(lambda step: None) if number == 6 else None)
    desk.finish()
    place = desk.order.index(6)
    assert [number for number in desk.order if number != 6] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert place >= 4  # those before it, which run together, are older


def test_an_idle_server_runs_what_there_is_at_once() -> None:
    desk = Desk()
    desk.submit(0, images(1)[0])
    before = desk.clock.now
    desk.finish()
    answer = desk.answer(0)
    assert answer.queued_ms == pytest.approx(0, abs=1e-6)
    assert answer.computed_ms == pytest.approx(1000 * (desk.clock.now - before))
    assert answer.computed_ms == pytest.approx(answer.exit)  # a millisecond a segment


def going_to(exit: int) -> Tensor:
    """An image that leaves at this exit (from 1) on every rung."""
    image = torch.zeros(1, K, N)
    image[0, exit - 1 :, 1] = 9.0
    return image


def test_the_deepest_segment_with_a_full_chunk_runs_first() -> None:
    program = Recorded(Clock())
    desk = Desk(model_of(program), program.clock, max_wait_ms=1000)
    program.runs.clear()
    for number in range(12):
        desk.submit(number, going_to(3 if number % 2 else 1))
    desk.finish()
    # Half of a chunk goes on: the first segment twice, then the full second one and third one before the first again.
    assert program.runs[:6] == [(0, 4), (0, 4), (1, 4), (2, 4), (0, 4), (1, 2)]


def test_a_straggler_waits_no_longer_between_segments_than_it_may() -> None:
    """Under load a chunk of images that go deep may never come together."""
    waited = {}
    for max_wait_ms in (3, 10**6):
        program = Recorded(Clock())
        desk = Desk(model_of(program), program.clock, max_wait_ms=max_wait_ms)
        desk.submit(0, going_to(4))
        number = 0
        while 0 not in desk.outcomes and number < 400:
            for _ in range(4):  # the first segment always has a full chunk
                number += 1
                desk.submit(number, going_to(1))
            desk.scheduler.turn()
        waited[max_wait_ms] = None if 0 not in desk.outcomes else desk.answer(0).queued_ms
    assert waited[3] is not None
    assert waited[3] < 3 + 2  # and a segment that has begun
    assert waited[10**6] is None


def test_few_wait_anywhere_but_before_the_first_segment() -> None:
    program = Recorded(Clock())
    model = model_of(program, chunk=8)
    desk = Desk(model, program.clock, max_waiting=10**6, max_wait_ms=4)
    dice = random.Random(0)
    lane = desk.scheduler._lanes[0]
    for number, image in enumerate(images(3000)):
        desk.submit(number, image)
        if number % 16 == 15:
            for _ in range(dice.randint(0, 3)):
                desk.scheduler.turn()
                assert all(waiting < 16 for waiting in desk.scheduler.snapshot().waiting_K[1:])
                assert all(line._held <= HELD * 8 + 16 for line in lane.between)  # rows, images or not
    desk.finish()
    assert len(desk.order) == 3000


def test_when_all_places_are_taken_it_is_said_when_one_will_be_free() -> None:
    desk = Desk(model_of(program := Recorded(Clock(), seconds=0.01), TO_THE_END), program.clock, max_waiting=8)
    for number in range(8):
        desk.submit(number, going_to(4))
    with pytest.raises(RefusedError, match="8 places") as caught:
        desk.submit(8, going_to(4))
    assert (caught.value.reason, caught.value.retry_after) == ("full", 1.0)  # nothing was measured yet
    desk.finish()
    for number in range(9, 17):
        desk.submit(number, going_to(4))
    with pytest.raises(RefusedError) as caught:
        desk.submit(17, going_to(4))
    assert caught.value.retry_after == pytest.approx(8 / 400)  # four images in 10 ms
    assert not desk.scheduler.snapshot().is_ready
    assert 17 not in desk.outcomes


def test_what_would_wait_too_long_is_refused() -> None:
    desk = Desk(
        model_of(program := Recorded(Clock(), seconds=0.01), TO_THE_END), program.clock, max_waiting=100, within_ms=30
    )
    assert desk.scheduler.snapshot().capacity == 100
    for number in range(16):
        desk.submit(number, going_to(4))
    desk.finish()
    assert desk.scheduler.snapshot().capacity == 12  # 400 a second for 30 ms
    program.seconds = 1.0
    for number in range(16, 28):
        desk.submit(number, going_to(4))
    desk.finish()
    assert desk.scheduler.snapshot().capacity == 4  # a full chunk is always taken in


def test_under_load_new_images_run_on_higher_rungs_before_any_is_refused() -> None:
    desk = Desk(max_waiting=10)
    for number in range(10):
        desk.submit(number, going_to(4))
    with pytest.raises(RefusedError):
        desk.submit(10, going_to(4))
    assert desk.scheduler.snapshot().rung == 3
    desk.finish()
    rungs = [desk.answer(number).rung for number in range(10)]
    assert rungs == sorted(rungs)
    assert (rungs[0], rungs[-1]) == (1, 3)
    desk.submit(11, going_to(4))
    desk.clock.now += 30
    desk.submit(12, going_to(4))
    desk.submit(13, going_to(4), rung=2)
    desk.finish()
    assert [desk.answer(number).rung for number in (11, 12, 13)] == [3, 1, 2]


def test_when_time_is_up_the_last_exit_reached_answers() -> None:
    desk = Desk(max_waiting=100)
    desk.submit(0, going_to(4), deadline=desk.clock.now + 0.0015)
    desk.submit(1, going_to(4), deadline=desk.clock.now)
    desk.submit(2, going_to(1), deadline=desk.clock.now + 0.0015)
    desk.submit(3, going_to(4), deadline=desk.clock.now + 9)
    desk.finish()
    assert (desk.answer(0).exit, desk.answer(0).in_time) == (2, False)
    assert desk.refusal(1).reason == "deadline"
    assert (desk.answer(2).exit, desk.answer(2).in_time) == (1, True)
    assert (desk.answer(3).exit, desk.answer(3).in_time) == (4, True)


def test_deadlines_long_past_their_images_are_not_kept() -> None:
    desk = Desk(max_waiting=8)
    for number in range(500):
        desk.submit(number, going_to(1), deadline=desk.clock.now + 3600)
        desk.scheduler.turn()
    assert len(desk.scheduler._deadlines) <= 4 * 8 + 1


def test_an_image_may_be_shown_exit_by_exit() -> None:
    desk = Desk()
    steps: list[Step] = []
    image = images(40)[next(n for n, exit in enumerate(chosen(LADDER[0], images(40))[0]) if exit == 3)]
    desk.submit(0, image, on_step=steps.append)
    desk.finish()
    assert [step.exit for step in steps] == [1, 2, 3]
    assert [step.threshold for step in steps] == [0.8, 0.7, 0.75]
    assert [step.label for step in steps] == image[0, :3].argmax(-1).tolist()
    for step, logits_N in zip(steps, image[0], strict=False):
        torch.testing.assert_close(step.probabilities_N, logits_N.softmax(-1))
        assert step.confidence == pytest.approx(step.probabilities_N.max().item())
    answer = desk.answer(0)
    assert (answer.exit, answer.label) == (3, steps[-1].label)
    steps.clear()
    desk.submit(1, going_to(4), on_step=steps.append)
    desk.finish()
    assert steps[-1].threshold is None


def test_every_exit_is_shown_also_where_none_may_answer_there() -> None:
    desk = Desk(model_of(program := Recorded(Clock()), TO_THE_END), program.clock)
    steps: list[Step] = []
    desk.submit(0, images(1)[0], on_step=steps.append)
    desk.finish()
    assert [step.exit for step in steps] == [1, 2, 3, 4]
    assert desk.answer(0).exit == 4


def test_only_images_with_logits_that_are_not_finite_are_refused() -> None:
    desk = Desk()
    broken, late = going_to(2), going_to(4)
    broken[:] = torch.nan
    late[0, 0] = torch.nan  # the first exit alone: the others answer
    for number, image in enumerate([going_to(1), broken, late, going_to(4)]):
        desk.submit(number, image)
    desk.finish()
    assert [desk.answer(number).exit for number in (0, 2, 3)] == [1, 4, 4]
    assert desk.refusal(1).reason == "not finite"


def test_a_client_that_goes_gives_its_place_back() -> None:
    desk = Desk(max_waiting=3)
    cancels = [desk.submit(number, going_to(4)) for number in range(3)]
    with pytest.raises(RefusedError):
        desk.submit(3, going_to(4))
    cancels[1]()
    cancels[1]()
    desk.submit(4, going_to(4))
    desk.scheduler.turn()
    cancels[2]()  # between segments
    desk.submit(5, going_to(1))
    desk.finish()
    assert sorted(desk.order) == [0, 4, 5]
    cancels[0]()
    assert desk.scheduler._taken() == 0


def test_images_are_let_go_of_with_their_places() -> None:
    """Clients that come and go at once, while a long segment runs, must not fill the memory."""
    desk = Desk(max_waiting=4)
    seen = []
    for _ in range(100):
        image = torch.zeros(1, K, N)
        seen.append(weakref.ref(image))
        desk.submit(0, image)()
    del image
    gc.collect()
    assert not any(one() is not None for one in seen)


def test_a_share_runs_on_for_the_guard() -> None:
    guards = [Guard(), None, Guard()]
    program = Recorded(Clock())
    desk = Desk(model_of(program, guards=guards), program.clock, audit=1.0, max_waiting=10**4)
    images_S1KN = images(200)
    rungs = [1 + number % 3 for number in range(200)]
    for number, image in enumerate(images_S1KN):
        desk.submit(number, image, rung=rungs[number])
        desk.finish()
    for rung, guard in enumerate(guards, 1):
        exits, labels = chosen(LADDER[rung - 1], images_S1KN)
        early = [n for n in range(200) if rungs[n] == rung and exits[n] < K]
        if guard is not None:
            assert guard.seen == [labels[n] != images_S1KN[n, 0, -1].argmax() for n in early]
            assert len(guard.seen) > 20
    assert desk.scheduler._taken() == 0


def test_only_that_share_runs_on() -> None:
    guard = Guard()
    program = Recorded(Clock())
    desk = Desk(model_of(program, LADDER[:1], guards=[guard]), program.clock, audit=0.1)
    for number in range(1000):
        desk.submit(number, going_to(1))
        desk.finish()
    assert 50 < len(guard.seen) < 160
    assert not any(guard.seen)


def test_what_runs_on_makes_no_answer_wait_long() -> None:
    """It takes part of the places, waits while answers are wanted, and goes on once in a while all the same."""
    guard = Guard()
    program = Recorded(Clock())
    desk = Desk(model_of(program, LADDER[:1], guards=[guard]), program.clock, audit=1.0, max_waiting=64)
    started = desk.clock.now
    number = 0
    while desk.clock.now < started + 2:
        while number - len(desk.order) < 8:  # there is always a full chunk
            desk.submit(number, going_to(1))
            number += 1
        desk.scheduler.turn()
        assert desk.scheduler._lanes[0].num_audits <= 64 // 8
        if desk.clock.now < started + AUDIT_WAIT:
            assert not guard.seen
    on = sum(first > 0 for first, _ in program.runs)
    assert len(guard.seen) > 8
    assert on < 0.05 * len(program.runs)
    assert max(desk.answer(n).queued_ms for n in desk.order) < 10


def test_on_alarm_all_run_to_the_end_if_that_was_asked_for() -> None:
    for safe in (True, False):
        guard = Guard()
        program = Recorded(Clock())
        desk = Desk(model_of(program, guards=[guard] * 3), program.clock, safe_on_alarm=safe)
        desk.submit(0, going_to(1))
        desk.finish()
        guard.alarm = "They differ."
        desk.submit(1, going_to(1))
        desk.finish()
        assert [desk.answer(number).exit for number in (0, 1)] == [1, K if safe else 1]
        assert desk.scheduler.snapshot().alarm == "They differ."


def test_an_image_prepared_for_a_model_that_was_replaced_is_refused() -> None:
    desk = Desk()
    desk.submit(0, going_to(1), fingerprint="one")
    desk.scheduler.replace(model_of(desk.program, name="two"))
    with pytest.raises(RefusedError) as caught:
        desk.submit(1, going_to(1), fingerprint="one")
    assert caught.value.reason == "replaced"
    desk.submit(2, going_to(1), fingerprint="two")
    desk.finish()
    assert [desk.answer(number).fingerprint for number in (0, 2)] == ["one", "two"]
    assert len(desk.scheduler._lanes) == 1


def test_what_is_no_image_of_the_model_is_refused() -> None:
    desk = Desk()
    for image in (torch.zeros(1, K, N + 1), torch.zeros(1, K, N, dtype=torch.float64)):
        with pytest.raises(UsageError, match="float32 of shape"):
            desk.submit(0, image)
    with pytest.raises(UsageError, match="count from 1"):
        desk.submit(0, going_to(1), rung=0)


@pytest.mark.parametrize("wrong", [{"max_waiting": 0}, {"audit": 1.5}, {"max_wait_ms": -1}, {"within_ms": "5"}])
def test_numbers_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Scheduler(model_of(Recorded(Clock())), start=False, **wrong)


def test_a_ladder_has_one_measure() -> None:
    with pytest.raises(UsageError, match="one measure"):
        model_of(Recorded(Clock()), [LADDER[0], Policy(LADDER[1].thresholds, Measure("margin"))])


# With the thread, and real time.


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "it did not come to that"
        time.sleep(0.001)


class Gated(Recorded):
    """Waits in every segment for a gate to be open."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.gate = threading.Event()
        self.gate.set()

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        assert self.gate.wait(30)
        return super().segment(first, last, carry)


def test_a_real_network_answers_as_the_engine_does() -> None:
    network = backbones.msdnet(
        num_classes=5, image_size=16, exits=3, base=1, growth=4, growth_factors=(1, 2), channels=4, head_channels=8
    ).eval()
    images_SCHW = torch.randn(60, 3, 16, 16)
    with torch.no_grad():
        logits_KSC = network(images_SCHW)
    middle_K = Policy((EVERYBODY,)).measure.over(logits_KSC, 5)[0].median(1).values
    policy = Policy((*middle_K[:-1].tolist(), EVERYBODY))
    engine = Engine(network, policy, plan=Plan(chunk=8))
    served = Served("n", "n", tuple("abcde"), (3, 16, 16), (policy,), (None,), (0.2, 0.5, 1.0))
    plan = engine.stream_plan
    scheduler = Scheduler(Model(served, engine.program, engine.segments(plan), plan))
    found: dict[int, Answer] = {}
    dice = random.Random(0)
    for number, image in enumerate(images_SCHW):
        scheduler.submit(Request(image, lambda outcome, number=number: found.update({number: outcome})))
        if dice.random() < 0.2:
            time.sleep(0.005)
    until(lambda: len(found) == 60)
    assert scheduler.drain(10)
    columns = zip(*((found[n].label, found[n].exit - 1, found[n].confidence) for n in range(60)), strict=True)
    labels_S, exits_S, confidence_S = map(torch.tensor, columns)
    agreed = engine.agreement(EngineAnswers(labels_S, exits_S, confidence_S), logits_KSC, policy)
    assert agreed.is_rounding(3)
    assert exits_S.unique().numel() == 3


def test_models_are_swapped_under_load_and_the_thread_ends_with_the_drain() -> None:
    before = threading.active_count()
    program = Recorded(Clock())
    models = [model_of(program, name=name) for name in ("one", "two")]
    scheduler = Scheduler(models[0], max_waiting=64)
    images_S1KN = images(2000)
    found: dict[int, list[Outcome]] = {}
    wanted: dict[int, str] = {}
    reasons: set[str] = set()

    def client(first: int) -> None:
        for number in range(first, 2000, 4):
            while True:
                served = scheduler.served
                request = Request(
                    images_S1KN[number],
                    lambda outcome, number=number: found.setdefault(number, []).append(outcome),
                    fingerprint=served.fingerprint,
                )
                try:
                    scheduler.submit(request)
                    wanted[number] = served.fingerprint
                    break
                except RefusedError as error:
                    reasons.add(error.reason)
                    time.sleep(0.0005)

    clients = [threading.Thread(target=client, args=(first,)) for first in range(4)]
    for thread in clients:
        thread.start()
    for swap in range(20):
        scheduler.replace(models[(swap + 1) % 2])
        time.sleep(0.002)
    for thread in clients:
        thread.join()
    assert scheduler.drain(30)
    assert {number: [one.fingerprint for one in outcomes] for number, outcomes in found.items()} == {
        number: [name] for number, name in wanted.items()
    }
    assert len(found) == 2000
    assert reasons <= {"full", "replaced"}
    assert threading.active_count() == before


def test_a_drain_takes_nothing_more_in_and_refuses_what_is_left() -> None:
    program = Gated()
    scheduler = Scheduler(model_of(program))
    until(lambda: scheduler.snapshot().is_ready)
    program.gate.clear()
    found: list[Outcome] = []
    for _ in range(8):
        scheduler.submit(Request(going_to(4), found.append))
    drained: list[bool] = []
    closing = threading.Thread(target=lambda: drained.append(scheduler.drain(0.05)))
    closing.start()
    until(lambda: not scheduler.snapshot().is_ready)
    with pytest.raises(RefusedError) as caught:
        scheduler.submit(Request(going_to(4), found.append))
    assert caught.value.reason == "draining"
    time.sleep(0.06)
    program.gate.set()
    closing.join(30)
    assert drained == [False]
    assert [one.reason for one in found if isinstance(one, RefusedError)] == ["draining"] * 8


def test_a_client_is_not_called_back_after_it_has_gone() -> None:
    scheduler = Scheduler(model_of(Recorded(Clock())), max_waiting=10**6)
    gone: set[int] = set()
    wrong: list[int] = []
    for number in range(2000):
        cancel = scheduler.submit(Request(going_to(1), lambda _, n=number: wrong.append(n) if n in gone else None))
        cancel()
        gone.add(number)
    assert scheduler.drain(30)
    assert not wrong


class Broken(Recorded):
    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        if carry[0].any():
            raise ValueError("the processor has left")
        return super().segment(first, last, carry)


def test_a_crash_is_told() -> None:
    told: list[BaseException] = []
    scheduler = Scheduler(model_of(Broken(Clock())), on_crash=told.append)
    scheduler.submit(Request(going_to(1), lambda outcome: None))
    until(lambda: told)
    assert "the processor has left" in str(told[0])
    assert not scheduler.snapshot().is_ready
    assert not scheduler.drain(1)
    with pytest.raises(RefusedError):
        scheduler.submit(Request(going_to(1), lambda outcome: None))


def test_by_default_a_crash_ends_the_process_with_its_reason() -> None:
    code = (
        "import threading, time\n"
        "from offramp.serve.scheduler import Scheduler\n"
        "class Model:\n"
        "    class served: ladder = ()\n"
        "    segments, chunk, guards = (), 1, ()\n"
        "    class program: num_exits = 1\n"
        "    def warm_up(self): raise ValueError('the processor has left')\n"
        "Scheduler(Model())\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the processor has left" in done.stderr
    assert "The scheduler has failed" in done.stderr
