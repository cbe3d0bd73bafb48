"""An engine and its rivals, timed in turns on the same images.

K exits, S images. A rival is the network cut at one exit: straight to it for every image, no other head asked.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.commands.sample import Pool
from offramp.costs import Cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record
from offramp.policy import Policy
from offramp.results.bench import Account, Accuracy, CutSpeed, Mode, Speed, account, accuracy, latency, to_measured
from offramp.runtime import Answers, Engine, Form, Plan, Program, Straight, Tally
from offramp.runtime.backends import make_program
from offramp.runtime.choice import CHUNKS
from offramp.runtime.plan import STREAM
from offramp.runtime.rows import joined
from offramp.runtime.timing import ratio, take_turns
from offramp.runtime.tune import STREAM_BATCH

SINGLE, TOGETHER, STREAMED = 100, 256, 4096  # images of a round: one at a time, in batches (about), in a stream
STREAM_BYTES = 512 * 2**20  # of the images of a stream, at most
TRIALS = 3  # turns of each
Tick = Callable[[], object]  # called between rounds


@dataclass(frozen=True, eq=False)
class Feed:
    """Images of the test set in the batches in which they are given, each `[B, channels, height, width]`."""

    name: str  # the size of a batch, or `stream`
    batches: tuple[Tensor, ...]
    offers: tuple[Tensor, ...]  # to rivals: the batches; of a stream everything at once, of which they take chunks
    positions_S: Tensor

    @classmethod
    def of(cls, batch: int | None, images: Pool, limit: int | None) -> "Feed":
        """Batches of one size, or a stream (None), out of these images, from the first one again where they end."""
        size, wanted = round_of(batch, limit, images.images_SCHW.shape[1:])
        rows_S = torch.arange(wanted) % len(images.positions_S)
        whole_SCHW = images.images_SCHW[rows_S]
        batches = torch.split(whole_SCHW, size)
        name, offers = (STREAM, (whole_SCHW,)) if batch is None else (str(batch), batches)
        return cls(name, batches, offers, images.positions_S[rows_S])

    @property
    def images(self) -> int:
        """Images of all batches."""
        return len(self.positions_S)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)`."""
        channels, height, width = self.batches[0].shape[1:]
        return channels, height, width


def round_of(batch: int | None, limit: int | None, image_shape: Sequence[int]) -> tuple[int, int]:
    """The size of a batch (None: of a stream), and how many images a round times: whole batches, about `limit`.

    A stream holds fewer images where they are so large that they would not fit into `STREAM_BYTES`.
    """
    size = STREAM_BATCH if batch is None else batch
    fit = STREAM_BYTES // (torch.float32.itemsize * math.prod(image_shape))
    wanted = min(STREAMED, fit) if batch is None else SINGLE if batch == 1 else TOGETHER
    return size, size * max(1, min(wanted, limit or wanted) // size)


def in_the_time(engine: Engine, batch: int | None, image: Tensor, rounds: int, seconds: float) -> int:
    """How many images a round may have so that all rounds of a mode take about so many seconds.

    Straight on, the tuned engine's time for an image is an upper bound of what a variant takes.
    """
    size = min(batch or 64, 64)
    straight, images = engine.straight(size), image.expand(size, *image.shape[1:]).contiguous()
    took = Turn([lambda: straight(images)] * 3, wait=engine.wait)
    took()
    turns = (rounds + 2) * (engine.num_exits + 2) + (TRIALS + 1) * 2 * len(CHUNKS)
    return max(1, int(seconds / (turns * took() / (3 * size))))


class Turn:
    """A variant that takes turns: each time it makes the calls of the next of its rounds. Their seconds are kept."""

    def __init__(self, *rounds: Sequence[Callable[[], object]], wait: Callable[[], None]) -> None:
        self.calls, self.wait = itertools.cycle(rounds), wait
        self.rounds: list[list[float]] = []

    def __call__(self) -> float:
        """Seconds of all calls, each until the device is done."""
        seconds = []
        for call in next(self.calls):
            started = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - started)
        self.rounds.append(seconds)
        return sum(seconds)


def calls(variant: Callable[[Tensor], object], batches: Iterable[Tensor]) -> list[Callable[[], object]]:
    """Those of a variant on each batch."""
    return [lambda images_BCHW=images_BCHW: variant(images_BCHW) for images_BCHW in batches]  # type: ignore[misc]


class Rivals:
    """Finds how the network cut at an exit runs fastest, in a tuned engine's form or others."""

    def __init__(self, engine: Engine, forms: Sequence[Form]) -> None:
        self.engine, self.programs = engine, [engine.program]
        self.refused: dict[Form, str] = {}  # forms that the network cannot be run in, and why
        for form in forms:
            if form != engine.program.form:
                with self._noting(form):
                    self.programs.append(make_program(engine.network, form, engine.device))

    def fastest(self, feed: Feed, tick: Tick = lambda: None) -> list[Straight]:
        """A rival per exit for images fed so, all in the form and the chunk that are best for the last."""
        last = self.engine.num_exits - 1
        deepest = self._fastest(last, self.programs, feed, tick)
        shallower = [Straight(deepest.program, self.engine.policy, k, deepest.chunk) for k in range(last)]
        return [*shallower, deepest]

    def _fastest(self, exit: int, programs: Sequence[Program], feed: Feed, tick: Tick) -> Straight:
        """The best of all programs in one chunk, then of that one in all chunks."""
        largest = max(map(len, feed.offers))
        chunks = [*([] if feed.name == STREAM else [None]), *(chunk for chunk in CHUNKS if chunk < largest)]
        if len(programs) > 1:
            programs = self._that_run(programs, exit, feed) or programs
        usual = 64 if 64 in chunks else chunks[0]
        best = self._best([Straight(program, self.engine.policy, exit, usual) for program in programs], feed, tick)
        return self._best([Straight(best.program, self.engine.policy, exit, chunk) for chunk in chunks], feed, tick)

    def _best(self, tried: Sequence[Straight], feed: Feed, tick: Tick) -> Straight:
        if len(tried) == 1:
            return tried[0]
        turns = {str(n): Turn(calls(straight, feed.offers), wait=self.engine.wait) for n, straight in enumerate(tried)}
        seconds = take_turns(turns, TRIALS, warmup=1, after_round=tick)
        # By the best round: in turns with torch a library loses time that it does not lose alone (docs/LOG.md).
        return tried[int(min(seconds, key=lambda name: min(seconds[name])))]

    def _that_run(self, programs: Sequence[Program], exit: int, feed: Feed) -> list[Program]:
        """The programs that answer an image: what is compiled is, by some forms, only at the first call."""
        runnable = []
        for one in programs:
            with self._noting(one.form):
                Straight(one, self.engine.policy, exit, None)(feed.offers[0][:1])
                runnable.append(one)
        return runnable

    @contextmanager
    def _noting(self, form: Form) -> Iterator[None]:
        """Go on where the form cannot be had: other forms can."""
        try:
            yield
        except (UsageError, OfframpError) as error:
            self.refused[form] = str(error)


class Fed:
    """A tuned engine on a feed."""

    def __init__(self, engine: Engine, feed: Feed) -> None:
        self.engine, self.feed = engine, feed
        self.tallies: list[Tally] = []  # of the turns with one

    @property
    def plan(self) -> Plan:
        """The plan that is carried out."""
        engine, feed = self.engine, self.feed
        return engine.stream_plan if feed.name == STREAM else engine.plan_for(len(feed.batches[0]))

    def answers(self, tally: Tally | None = None) -> Iterator[Answers]:
        """The answers of each batch."""
        if self.feed.name == STREAM:
            yield from self.engine.stream(self.feed.batches, tally=tally)
        else:
            yield from (self.engine(images_BCHW, tally=tally) for images_BCHW in self.feed.batches)

    def turn(self) -> Turn:
        """To be timed: batches one by one, a stream in one piece."""
        if self.feed.name == STREAM:
            return Turn([lambda: list(self.answers())], wait=self.engine.wait)
        return Turn(calls(self.engine, self.feed.batches), wait=self.engine.wait)

    def accounted(self) -> Turn:
        """To be timed with a timed tally, a new one each time."""
        return Turn([self._with_tally], wait=self.engine.wait)

    def _with_tally(self) -> None:
        self.tallies.append(self.engine.tally(timed=True))
        for _ in self.answers(self.tallies[-1]):
            pass


def measure(
    engine: Engine,
    feed: Feed,
    rivals: Sequence[Straight],
    test: Record,
    costs: Cost,
    rounds: int,
    exit_ms: Sequence[float],
    tick: Tick = lambda: None,
) -> Mode:
    """Time the engine and its rivals in turns on a feed, whose images are of the test set.

    `exit_ms`, as tuning gives it, says how the time grows from exit to exit. Where the engine lets images leave, its
    level is the measured one.
    """
    fed = Fed(engine, feed)
    policy = engine.policy_under(fed.plan)
    agreed = engine.agreement(joined(fed.answers()), test.logits_KSC[:, feed.positions_S], policy)
    turns = {"engine": fed.turn(), "accounted": fed.accounted()}
    turns |= {str(k): Turn(calls(rival, feed.offers), wait=engine.wait) for k, rival in enumerate(rivals)}
    seconds = take_turns(turns, rounds, after_round=tick)
    names, last = [str(k) for k in range(engine.num_exits)], str(engine.num_exits - 1)
    speeds = {name: _speed(turns[name], seconds[name], seconds[last], feed) for name in ("engine", *names)}
    chosen = policy.choose(test.logits_KSC, test.num_classes)
    spent_K = engine.operations(fed.plan, costs.image_shape)
    expected = on_test(chosen.labels_S, chosen.exits_S, policy, spent_K, test)
    in_full_K = torch.tensor(engine.operations(Plan(), costs.image_shape), dtype=torch.float64)
    in_full_S = in_full_K[engine.policy.choose(test.logits_KSC, test.num_classes).exits_S]
    if not fed.plan.straight:
        exit_ms = to_measured(exit_ms, fed.tallies[-1].exits_K, speeds["engine"].ms)
    return Mode(
        name=feed.name,
        images=feed.images,
        asks=tuple(k + 1 for k in engine.asks(fed.plan)),
        accuracy=expected.accuracy,
        operations=expected.operations_S.mean().item(),
        promised=costs.path[-1].operations / in_full_S[feed.positions_S].mean().item(),
        engine=speeds["engine"],
        exits=tuple(
            CutSpeed(**vars(speeds[name]), chunk=rival.chunk) for name, rival in zip(names, rivals, strict=True)
        ),
        straight_form=str(rivals[-1].program.form),
        account=_account(fed.tallies[-rounds:], seconds, last, feed, costs),
        agreement=agreed,
        exit_ms=tuple(exit_ms),
    )


def whole(engine: Engine) -> Engine:
    """The engine, with a plan for streams that closes no exit of its policy: its own, where that does not."""
    if engine.asks(engine.stream_plan) == engine.asks(Plan()):
        return engine
    return engine.under(engine.plans, Plan(chunk=engine.stream_plan.chunk))


class OnTest(NamedTuple):
    """What answers to the test set are worth."""

    accuracy: Accuracy
    operations_S: Tensor


def on_test(labels_S: Tensor, exits_S: Tensor, policy: Policy, spent_K: Sequence[int], test: Record) -> OnTest:
    """What answers to the test set are worth, where an image that leaves at each exit costs so many operations.

    Accuracy is compared with that of the plain network's last exit, as the policy reads it.
    """
    right_S = labels_S.cpu() == test.targets_S
    spent_S = torch.tensor(spent_K, dtype=torch.float64)[exits_S.cpu()]
    return OnTest(accuracy(right_S, right(policy, test, -1)), spent_S)


def right(policy: Policy, test: Record, k: int) -> Tensor:
    """Whether exit k's answers `[S]`, as the policy reads them, are right."""
    return policy.log_probs(k, test.logits_KSC[k], test.num_classes).argmax(-1) == test.targets_S


def _speed(turn: Turn, seconds: list[float], straight: list[float], feed: Feed) -> Speed:
    spread = ratio(straight, seconds)
    each = [one for calls in turn.rounds[-len(seconds) :] for one in calls]
    singles = latency(each) if feed.name == "1" else None
    ms = 1000 * median(seconds) / feed.images
    return Speed(ms, spread["ratio"], spread["at_least"], spread["at_most"], singles)


def _account(
    tallies: Sequence[Tally], seconds: Mapping[str, list[float]], last: str, feed: Feed, costs: Cost
) -> Account:
    """Of the median round in each respect."""
    return account(
        wall=median(seconds["accounted"]),
        segments=median(sum(tally.seconds_K) for tally in tallies),
        rows_K=tallies[-1].stage_rows_K,
        head_rows_K=tallies[-1].head_rows_K,
        left_K=tallies[-1].exits_K,
        stages_K=[count.operations for count in costs.stages],
        heads_K=[count.operations for count in costs.heads],
        straight_operations=costs.path[-1].operations,
        straight_seconds=median(seconds[last]) / feed.images,
    )
