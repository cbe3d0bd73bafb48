import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import Engine, Plan

NUM_EXITS, STAGE_MS = 4, 10
POLICY = Policy((0.7, NOBODY, 0.6, EVERYBODY))


class Clock:
    """Seconds that pass only while stages run."""

    def __init__(self, network: EarlyExitNet) -> None:
        self.now, self.stages = 100.0, 0
        for stage in network.stages:
            stage.register_forward_hook(self._tick)

    def _tick(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.now += STAGE_MS / 1000
        self.stages += 1

    def __deepcopy__(self, memo: dict) -> "Clock":
        return self  # the engine's copy of the network keeps the same clock

    def __call__(self) -> float:
        return self.now


Timed = tuple[Engine, Clock]


@pytest.fixture
def timed(recorded) -> Callable[..., Timed]:
    def build(policy: Policy = POLICY, plan: Plan | None = None) -> Timed:
        network = recorded(NUM_EXITS, 2)
        clock = Clock(network)
        return Engine(network, policy, plan=plan), clock

    return build


def logits(num_images: int) -> Tensor:
    return torch.randn(num_images, NUM_EXITS, 2, generator=torch.Generator().manual_seed(5))


def best_after(policy: Policy, images_BKC: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, exits, confidences: the policy followed up to exit k, where those that are left answer."""
    logits_KBC = images_BKC.transpose(0, 1)
    confidence_KB, labels_KB = policy.measure.over(logits_KBC, 2)
    exits_B = policy.choose(logits_KBC, 2).exits_S.clamp(max=k)
    rows_B = torch.arange(len(images_BKC))
    return labels_KB[exits_B, rows_B], exits_B, confidence_KB[exits_B, rows_B]


def same(answers, expected) -> None:
    for got_B, wanted_B in zip(answers, expected, strict=True):
        torch.testing.assert_close(got_B, wanted_B, rtol=0, atol=0)


@pytest.mark.parametrize("measure", ["softmax", "patience"])
@pytest.mark.parametrize("plan", [None, Plan(chunk=3), Plan(sizes=())])
def test_each_exit_gives_the_best_answers_so_far(timed, measure, plan) -> None:
    policy = POLICY if measure == "softmax" else Policy((1.0, 1.0, 1.0, EVERYBODY), Measure("patience"))
    engine, _ = timed(policy, plan)
    images_BKC = logits(25)
    found = list(engine.each_exit(images_BKC))
    assert len(found) == NUM_EXITS
    for k, answers in enumerate(found):
        same(answers, best_after(policy, images_BKC, k))
    same(found[-1], engine(images_BKC))


def test_earlier_answers_are_not_changed_by_later_ones(timed) -> None:
    engine, _ = timed()
    exits = engine.each_exit(logits(9))
    first = next(exits)
    kept = [column_B.clone() for column_B in first]
    list(exits)
    same(first, kept)


def test_stages_run_when_their_answers_are_asked_for(timed) -> None:
    engine, clock = timed()
    exits = engine.each_exit(logits(9))
    assert clock.stages == 0
    for n, _ in enumerate(exits, 1):
        assert clock.stages == n


def test_it_ends_when_all_have_left(timed) -> None:
    engine, clock = timed(Policy((NOBODY, EVERYBODY, NOBODY, EVERYBODY)))
    assert len(list(engine.each_exit(logits(9)))) == clock.stages == 2
    assert list(engine.each_exit(logits(0))) == []


@pytest.mark.parametrize(
    ("deadline_ms", "stages"), [(0, 1), (5, 1), (STAGE_MS - 1, 1), (STAGE_MS + 1, 2), (25, 3), (35, 4), (math.inf, 4)]
)
def test_no_stage_is_begun_after_the_deadline(timed, deadline_ms, stages) -> None:
    engine, clock = timed()
    images_BKC, started = logits(25), clock.now
    tally = engine.tally()
    answers = engine.anytime(images_BKC, deadline_ms=deadline_ms, clock=clock, tally=tally)
    assert clock.stages == stages
    late_ms = (clock.now - started) * 1000 - deadline_ms
    assert late_ms <= STAGE_MS + 1e-6  # at most the stage under way
    same(answers, best_after(POLICY, images_BKC, stages - 1))
    assert tally.exits_K == answers.exits_B.bincount(minlength=NUM_EXITS).tolist()


def test_images_that_left_keep_their_answer_and_are_run_no_further(timed) -> None:
    engine, _ = timed(plan=Plan(sizes=()))
    images_BKC, tally = logits(25), engine.tally()
    at_once, in_time = (engine.anytime(images_BKC, deadline_ms=ms, tally=tally) for ms in (0, 1e9))
    left_B = POLICY.choose(images_BKC.transpose(0, 1), 2).exits_S == 0
    assert 0 < left_B.sum() < 25
    for first_B, later_B in zip(at_once, in_time, strict=True):
        assert torch.equal(first_B[left_B], later_B[left_B])
    assert tally.stage_rows_K[:2] == [50, 25 - int(left_B.sum())]


def test_given_time_it_answers_as_the_call(small, images_of, leaving) -> None:
    network = small().double()
    images_BCHW = images_of(network, 33).double()
    with torch.no_grad():
        engine = Engine(network, leaving(network(images_BCHW), network.num_classes, (0.4, 0.5)))
    labels_B, exits_B, confidence_B = engine.anytime(images_BCHW, deadline_ms=math.inf)
    expected = engine(images_BCHW)
    assert torch.equal(labels_B, expected.labels_B)
    assert torch.equal(exits_B, expected.exits_B)
    torch.testing.assert_close(confidence_B, expected.confidence_B, rtol=0, atol=1e-12)


def test_no_images_have_no_answers(timed) -> None:
    engine, clock = timed()
    assert [len(column_B) for column_B in engine.anytime(logits(0), deadline_ms=0)] == [0, 0, 0]
    assert clock.stages == 0


@pytest.mark.parametrize("deadline_ms", [-1, math.nan, -math.inf])
def test_deadlines_that_are_no_times_are_refused(timed, deadline_ms) -> None:
    engine, _ = timed()
    with pytest.raises(UsageError, match="deadline_ms must be a number of at least 0, not"):
        engine.anytime(logits(1), deadline_ms=deadline_ms)
