"""Contenders made ready, and timed in turns on the same images: engines under several policies, networks of one exit.

Each round times other images, the same for all contenders: how long an engine takes depends on which images it gets, so
the spread over rounds holds that too. K exits, S images.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.commands.bench.timing import STREAM_BYTES, TRIALS, Feed, Rivals, Turn, calls, right, round_of
from offramp.commands.sample import Pool, pool
from offramp.costs import Cost, cost
from offramp.data import Split
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record, policy_for
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Measure, Policy
from offramp.results.verdict.values import Contender, Kind
from offramp.runtime import Engine, Form, Straight, agreement
from offramp.runtime.rows import joined
from offramp.runtime.timing import take_turns
from offramp.runtime.tuning import Trial

ALL = Policy((EVERYBODY,))  # of a network with one exit; how confidence is read changes no answer


class Way(NamedTuple):
    """How a network is run straight, and forms that it could not be run in, with the reasons."""

    straight: Straight
    refused: Mapping[Form, str]


@dataclass(frozen=True, eq=False)
class Single:
    """A network of one exit, to be run straight; `name`, `kind` and `exit` as of a contender."""

    name: str
    kind: Kind
    exit: int
    networks: Sequence[EarlyExitNet]  # it, and the same with other seeds
    tests: Sequence[Record]  # of each, on the test set
    searches: Sequence[Record]  # of each, on the search images

    def right(self, records: Sequence[Record]) -> Tensor:
        """Of each image the share of the networks that answer it rightly."""
        return torch.stack([right(ALL, record, 0).double() for record in records]).mean(0)

    def fastest(self, feed: Feed, forms: Sequence[Form], device: torch.device) -> Way:
        """The way to run it that is fastest on this feed, among forms and numbers of images at a time.

        A form in which the engine's network is run may be none for this one: then it is left out; where none is left,
        the network is run as it is.
        """
        network, refused = self.networks[0].to(device), dict[Form, str]()
        for form in forms:
            try:
                own = Engine(network, ALL, form=form)
                own(feed.offers[0][:1])  # some of what can fail is done at the first call
                break
            except (UsageError, OfframpError) as error:
                refused[form] = str(error)
        else:
            own = Engine(network, ALL)
        rivals = Rivals(own, [form for form in forms if form not in refused])
        straight = rivals.fastest(feed)[0]
        return Way(straight, {**refused, **rivals.refused})


def left_out(trials: Iterable[Trial], singles: Iterable[tuple[Single, Way]]) -> tuple[str, ...]:
    """A sentence for each form that was not used at all, and for each that some networks could not be run in.

    Forms that are not admitted in the engine's trials are tried with no network.
    """
    sentences = []
    for trial in trials:
        if not trial.admitted:
            answers = f"of the engine's answers {trial.wrong} were wrong and {trial.flips} flipped"
            why = answers if trial.reason is None else _in_a_line(trial.reason)
            sentences.append(f"Nothing was run in the form {trial.form}: {why}.")
    names: dict[tuple[Form, str], list[str]] = {}
    for one, way in singles:
        for form, reason in way.refused.items():
            names.setdefault((form, _in_a_line(reason)), []).append(one.name)
    sentences += [
        f"Not run in the form {form}, although the engine's network can be: {', '.join(names_of_form)} ({reason})."
        for (form, reason), names_of_form in names.items()
    ]
    return tuple(sentences)


def _in_a_line(reason: str) -> str:
    lines = reason.strip().splitlines() or ["no reason was given"]
    return lines[0].rstrip(".")


def feeds_of(test: Split, batch_size: int, limit: int | None, rounds: int) -> tuple[Feed, ...]:
    """Images of the test set, mixed, in batches: as many feeds as rounds, fewer where they would not fit into memory.

    Where the test set ends, its images come again. `limit` is of the images of a feed, but it has a whole batch.
    """
    _, size = round_of(batch_size, limit, test.image_shape)
    fit = STREAM_BYTES // (torch.float32.itemsize * math.prod(test.image_shape) * size)
    number = max(1, min(rounds, fit))
    whole = pool(test, number * size)
    rows_S = torch.arange(number * size) % len(whole.positions_S)
    parts = (Pool(whole.images_SCHW[rows], whole.positions_S[rows]) for rows in torch.split(rows_S, size))
    return tuple(Feed.of(batch_size, part, size) for part in parts)


def _in_turn(variant: Callable[[Tensor], object], feeds: Sequence[Feed], wait: Callable[[], None]) -> Turn:
    """The variant, each time on the next feed."""
    return Turn(*(calls(variant, feed.batches) for feed in feeds), wait=wait)


def rough_ms(straights: Sequence[Straight], feed: Feed, wait: Callable[[], None]) -> list[float]:
    """Milliseconds per image of each, by a few turns: where policies are searched, no figure of the verdict."""
    turns = {str(number): _in_turn(straight, [feed], wait) for number, straight in enumerate(straights)}
    seconds = take_turns(turns, TRIALS, warmup=1)
    return [1000 * median(seconds[name]) / feed.images for name in turns]


def policies_for(
    targets: Mapping[str, float], exit_ms: Sequence[float], search: Record, costs: Cost, measure: Measure
) -> dict[str, Policy]:
    """The best policy found on `search` for each time; none for times that not even the first exit keeps.

    `targets` are milliseconds per image by name, `exit_ms` those of an image that leaves at each exit, as tuned.
    """
    policies: dict[str, Policy] = {}
    for name, ms in targets.items():
        if ms < exit_ms[0]:
            continue
        policy = policy_for(search, costs, latency=ms, times=exit_ms, measure=measure)
        if all(policy.thresholds != other.thresholds for other in policies.values()):
            policies[name] = policy
    return policies


def timed(
    early: Mapping[str, Engine],
    singles: Sequence[tuple[Single, Straight]],
    feeds: Sequence[Feed],
    rounds: int,
    test: Record,
    search: Record,
) -> tuple[list[Contender], int]:
    """All contenders, timed in turns, and how many of a feed's answers rounding does not explain."""
    wait, batch = next(iter(early.values())).wait, len(feeds[0].batches[0])
    turns = {name: _in_turn(engine.runs(batch), feeds, wait) for name, engine in early.items()}
    turns |= {one.name: _in_turn(straight, feeds, wait) for one, straight in singles}
    seconds = take_turns(turns, rounds)
    ms = {name: tuple(1000 * one / feeds[0].images for one in taken) for name, taken in seconds.items()}
    wrong = sum(_wrong_of_engine(engine, feeds[0], test) for engine in early.values())
    wrong += sum(_wrong(one, straight, feeds[0]) for one, straight in singles)
    contenders = [_engine(name, engine, feeds[0], ms[name], test, search) for name, engine in early.items()]
    return [*contenders, *(_single(one, feeds[0], ms[one.name]) for one, _ in singles)], wrong


def _engine(name: str, engine: Engine, feed: Feed, ms_R: Sequence[float], test: Record, search: Record) -> Contender:
    plan = engine.plan_for(len(feed.batches[0]))
    policy = engine.policy_under(plan)
    chosen, searched = (policy.choose(record.logits_KSC, record.num_classes) for record in (test, search))
    operations_K = torch.tensor(engine.operations(plan, feed.image_shape), dtype=torch.float64)
    return Contender(
        name=name,
        kind="engine",
        exit=None,
        right_S=(chosen.labels_S == test.targets_S).double(),
        search_right_S=(searched.labels_S == search.targets_S).double(),
        ms_R=ms_R,
        operations=operations_K[chosen.exits_S].mean().item(),
        straight=plan.straight,
    )


def _single(one: Single, feed: Feed, ms_R: Sequence[float]) -> Contender:
    return Contender(
        name=one.name,
        kind=one.kind,
        exit=one.exit,
        right_S=one.right(one.tests),
        search_right_S=one.right(one.searches),
        ms_R=ms_R,
        operations=cost(one.networks[0], feed.image_shape).exits[0].operations,
        seeds=len(one.networks),
    )


def _wrong_of_engine(engine: Engine, feed: Feed, test: Record) -> int:
    answers = joined(engine(images_BCHW) for images_BCHW in feed.batches)
    policy = engine.policy_under(engine.plan_for(len(feed.batches[0])))
    return engine.agreement(answers, test.logits_KSC[:, feed.positions_S], policy).wrong


def _wrong(one: Single, straight: Straight, feed: Feed) -> int:
    answers = joined(straight(images_BCHW) for images_BCHW in feed.batches)
    logits_KSC, program = one.tests[0].logits_KSC[:, feed.positions_S], straight.program
    return agreement(answers, logits_KSC, ALL, program.num_classes, program.form.tolerance).wrong
