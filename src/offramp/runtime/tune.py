"""Finds how an engine is fastest on this machine, and never slower than the network run straight on.

Stages and exits are timed by themselves, plans are chosen by those times (`choice`), and what looks faster than
straight on has to prove it, in turns with it on real batches. B images of a batch, K exits, S images.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.errors import OfframpError, UsageError
from offramp.policy import CERTIFICATE, PATIENCE
from offramp.runtime import file_cache
from offramp.runtime.agreement import Agreement
from offramp.runtime.backends import usual_forms
from offramp.runtime.choice import WORTH, Flow, RankedPlans, choose, choose_stream, exit_ms
from offramp.runtime.images import spread
from offramp.runtime.plan import STREAM, Plan
from offramp.runtime.program import Form, Program, certified_form
from offramp.runtime.rows import joined
from offramp.runtime.runner import Runner
from offramp.runtime.stream import in_turn
from offramp.runtime.table import batches_of, time_table
from offramp.runtime.timing import Name, conditions, ratio, take_turns
from offramp.runtime.torch_ import TorchProgram
from offramp.runtime.tuning import Speedup, Trial, Tuning, described
from offramp.storage import weights_hash

STREAM_BATCH = 32  # images that come together in the stream that is tried
STREAMED = 256, 4096  # how many come in all, at least and at most: long, or the last, half-full chunks would decide
LOOKED_AT = 1024  # images given, at most: each of them is run under every form
CLOSE = 1.15  # ways straight on that are expected within this factor of the best are tried
TRIED = 3  # ways straight on, and plans with exits, at most
ROTATED = 3  # rounds until batches come again
IN_A_ROUND = 32  # images at least
SORTING = 3  # rounds to find the best of each kind
PROVING = 9, 25  # rounds to compare these two, at least and at most
SETTING_UP = 60.0  # seconds that a form may be expected to take until it runs
FIRST = 64, 3, 1  # numbers of rows that a form is first run with: libraries compile, or fail, then
TABLE, FORM = 0.3, 0.1  # shares of the time; the rest is for trying plans


def tuned(
    runner: Runner,
    images_SCHW: Tensor,
    batch_sizes: Sequence[int],
    forms: Sequence[Form] | None,
    seconds: float,
    streams: bool,
) -> tuple[Tuning, Program]:
    """See `Engine.tune`. The program is that of the tuning's form, which need not be made again."""
    certified = certified_form(runner.policy)
    forms = (usual_forms(runner.program.device) if certified is None else (certified,)) if forms is None else forms
    _check(images_SCHW, batch_sizes, forms, seconds)
    images_SCHW = spread(images_SCHW, LOOKED_AT)
    runner = copy.copy(runner)  # what is tried here does not touch the runner
    logits_KSC = _plain_logits(runner, images_SCHW)
    flow = _flow(runner, logits_KSC)
    trials = _use_best(runner, forms, images_SCHW, logits_KSC, batch_sizes, FORM * seconds)
    table = time_table(runner, images_SCHW, max(*batch_sizes, 128), TABLE * seconds)
    share = (1 - TABLE - FORM) * seconds / (len(batch_sizes) + 1)
    results: dict[str, _Best] = {}
    for size in sorted(batch_sizes):
        feed = batches_of(images_SCHW, size)
        results[str(size)] = _proven(runner, choose(table, flow, size), feed, share, size)
    plans = {size: results[str(size)].plan for size in sorted(batch_sizes)}
    if streams:
        choice = choose_stream(table, flow, STREAM_BATCH)
        length = min(STREAMED[1], max(STREAMED[0], int(1000 * share / choice.straight[0].ms / 6)))
        results[STREAM] = _proven(runner, choice, batches_of(images_SCHW, length)[:1], share, None)
    tuning = Tuning(
        form=runner.program.form,
        plans=plans,
        stream=results[STREAM].plan if streams else plans[max(plans)],
        gains={name: result.gain for name, result in results.items()},
        chunks={name: result.chunk for name, result in results.items()},
        exit_ms={
            name: exit_ms(table, flow, result.with_exits, None if name == STREAM else int(name))
            for name, result in results.items()
        },
        table=table,
        forms=trials,
        conditions=conditions(runner.program.device),
        weights=weights_hash(runner.network.state_dict()),
        policy=described(runner.policy),
    )
    return tuning, runner.program


def _check(images_SCHW: Tensor, batch_sizes: Sequence[int], forms: Sequence[Form], seconds: float) -> None:
    if len(images_SCHW) == 0:
        raise UsageError("There are no images to tune on; a few hundred like those to come are needed.")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch_sizes must be one size or more, each at least 1, not {tuple(batch_sizes)}.")
    if not forms:
        raise UsageError("forms must name one form or more; None means the usual ones.")
    if not seconds > 0:
        raise UsageError(f"seconds must be above 0, not {seconds!r}.")


def _plain_logits(runner: Runner, images_SCHW: Tensor) -> Tensor:
    """Logits `[K, S, C]` of every exit by the network as it is."""
    return _logits(TorchProgram(runner.network, Form(), runner.device, as_it_is=True), images_SCHW)


def _logits(program: Program, images_SCHW: Tensor) -> Tensor:
    return torch.cat([program.logits(images_BCHW).cpu() for images_BCHW in torch.split(images_SCHW, 64)], 1)


def _flow(runner: Runner, logits_KSC: Tensor) -> Flow:
    policy = runner.policy
    confidence_KS, _ = policy.measure.over(logits_KSC, runner.network.num_classes)
    takes_KS = torch.stack([policy.takes(k, confidence_S) for k, confidence_S in enumerate(confidence_KS)])
    whole = CERTIFICATE in policy.found or policy.measure.name == PATIENCE
    return Flow(takes_KS.numpy(), runner.asks(Plan())[:-1], whole)


def _use_best(
    runner: Runner,
    forms: Sequence[Form],
    images_SCHW: Tensor,
    logits_KSC: Tensor,
    batch_sizes: Sequence[int],
    seconds: float,
) -> tuple[Trial, ...]:
    """Make the runner run in the form that is best straight on, of those that answer as the plain network does.

    One form is for all sizes: the one whose worst loss against the best at any size is the smallest.
    """
    trials: list[Trial] = []
    admitted: dict[Form, Runner] = {}
    for form in dict.fromkeys(forms):
        twin, started = copy.copy(runner), time.perf_counter()
        reason = _set_up(twin, form, images_SCHW)
        took = time.perf_counter() - started
        if reason is not None:
            trials.append(Trial(form, False, 0, 0, {}, took, reason))
            continue
        # Of int8 only that the runner answers as its own logits say: what it costs is not rounding, and was asked for.
        own = logits_KSC if form.precision != "int8" else _logits(twin.program, images_SCHW)
        agreements = _agreements(twin, images_SCHW, own)
        admitted_too = all(agreement.is_rounding(twin.num_exits) for agreement in agreements)
        flips, wrong = (sum(getattr(agreement, name) for agreement in agreements) for name in ("flips", "wrong"))
        trials.append(Trial(form, admitted_too, flips, wrong, {}, took))
        if admitted_too:
            admitted[form] = twin
    if len(admitted) > 1:
        form, ms = _best_straight(admitted, images_SCHW, batch_sizes, seconds)
    else:
        form, ms = next(iter(admitted), certified_form(runner.policy) or Form()), {}
    runner.use(form, {1: Plan()}, program=admitted[form].program if form in admitted else None)
    return tuple(replace(trial, straight_ms=ms.get(trial.form, {})) for trial in trials)


def _best_straight(
    admitted: Mapping[Form, Runner], images_SCHW: Tensor, batch_sizes: Sequence[int], seconds: float
) -> tuple[Form, dict[Form, dict[str, float]]]:
    """The best of several forms, and milliseconds of each in its best round, by size of batch.

    Not the median: in turns with torch, a library loses time that it does not lose alone (docs/LOG.md, 2026-11-30).
    """
    ms: dict[Form, dict[str, float]] = {form: {} for form in admitted}
    for size in sorted({min(size, 64) for size in (*batch_sizes, 64)}):
        feed = batches_of(images_SCHW, size)
        turns = {form: _Turn(twin.straight(size), feed, twin.wait) for form, twin in admitted.items()}
        for form, took in _in_turns(turns, (SORTING, PROVING[0]), seconds / 2).items():
            ms[form][str(size)] = 1000 * min(took)
    best = {size: min(of_form[size] for of_form in ms.values()) for size in next(iter(ms.values()))}
    return min(admitted, key=lambda form: max(ms[form][size] / best[size] for size in best)), ms


def _set_up(runner: Runner, form: Form, images_SCHW: Tensor) -> str | None:
    """Make the runner run in a form, and run it for the first time; the reason where it cannot."""
    if form.backend != "torch" and (seconds := file_cache.expected_seconds(runner.network)) > SETTING_UP:
        return (
            f"its files would take about {seconds:.0f} s to make, more than {SETTING_UP:.0f}; "
            f"Engine(network, policy, backend={form.backend!r}) makes them, and they are kept"
        )
    try:
        runner.use(form, {1: Plan()})
        for rows in FIRST:
            runner.program.logits(images_SCHW[:rows])
        runner.wait()
    except (UsageError, OfframpError) as error:
        return str(error)
    return None


def _agreements(runner: Runner, images_SCHW: Tensor, logits_KSC: Tensor) -> list[Agreement]:
    """How the engine's form answers with exits, and straight on."""
    agreements = []
    for plan in (Plan(), Plan(straight=True)):
        variant = runner.under({1: plan})
        answers = joined(variant(images_BCHW) for images_BCHW in torch.split(images_SCHW, 64))
        agreements.append(variant.agreement(answers, logits_KSC, variant.policy_under(plan)))
    return agreements


class _Turn:
    """Runs batches, some a round and in the next round others, and says how many seconds one took."""

    def __init__(self, call: Callable[[Tensor], object], batches: Sequence[Tensor], wait: Callable[[], None]) -> None:
        self.call, self.batches, self.wait = call, batches, wait
        self.first, self.a_round = 0, 1

    def __call__(self) -> float:
        """The mean of a round's batches."""
        started = time.perf_counter()
        for number in range(self.first, self.first + self.a_round):
            self.call(self.batches[number % len(self.batches)])
            self.wait()
        self.first += self.a_round
        return (time.perf_counter() - started) / self.a_round


def _in_turns(turns: Mapping[Name, _Turn], rounds: tuple[int, int], seconds: float) -> dict[Name, list[float]]:
    """Seconds of a batch in each round, of as many rounds (at least and at most) and batches as the time allows.

    All turns have the same batches, and each is run before it counts.
    """
    batches = next(iter(turns.values())).batches
    each = sum(min(turn(), turn()) for turn in turns.values())
    fewest = min(len(batches), math.ceil(IN_A_ROUND / len(batches[0])))
    number = min(rounds[1], max(rounds[0], int(seconds / (each * fewest)) - ROTATED))
    a_round = min(len(batches), max(fewest, int(seconds / ((number + ROTATED) * each))))
    pool = min(len(batches), a_round * ROTATED)
    for turn in turns.values():
        turn.batches = [turn.batches[i * len(batches) // pool] for i in range(pool)]
        turn.first, turn.a_round = 0, pool
        if pool > 1:
            turn()
        turn.first, turn.a_round = 0, a_round
    return take_turns(turns, number, warmup=0)


class _Best(NamedTuple):
    """What is best for one size of batch."""

    plan: Plan
    gain: Speedup
    chunk: int | None
    with_exits: Plan


def _proven(runner: Runner, choice: RankedPlans, feed: Sequence[Tensor], seconds: float, size: int | None) -> _Best:
    """The best way straight on, or the best plan with exits where it is faster than that beyond doubt.

    Without a size of batches, in a stream: images come in batches, and answers leave in batches.
    """

    def turn(plan: Plan) -> _Turn:
        variant = runner.under({size or 1: plan})
        if size is not None:
            return _Turn(variant.runs(size), feed, runner.wait)
        return _Turn(lambda images_SCHW: [*in_turn(variant, torch.split(images_SCHW, STREAM_BATCH))], feed, runner.wait)

    near = [way.plan for way in choice.straight if way.ms <= CLOSE * choice.straight[0].ms][:TRIED]
    hopeful = [way.plan for way in choice.adaptive[:TRIED]] if choice.gain * WORTH > 1 else []
    best = dict.fromkeys((*near, *hopeful), 0.0)
    if len(near) > 1 or len(hopeful) > 1:  # the fastest of each kind, by a few rounds
        rounds = _in_turns({plan: turn(plan) for plan in best}, (SORTING, SORTING), seconds / 3)
        best = {plan: min(took) for plan, took in rounds.items()}
    straight = min(near, key=best.__getitem__)
    if not hopeful:
        with_exits = choice.adaptive[0].plan if choice.adaptive else straight
        return _Best(straight, Speedup(choice.gain, None), straight.chunk, with_exits)
    adaptive = min(hopeful, key=best.__getitem__)
    took = _in_turns({"straight": turn(straight), "exits": turn(adaptive)}, PROVING, seconds * 2 / 3)
    spread = ratio(took["exits"], took["straight"])
    faster = spread["ratio"] < WORTH and spread["at_most"] < 1
    return _Best(adaptive if faster else straight, Speedup(choice.gain, 1 / spread["ratio"]), straight.chunk, adaptive)
