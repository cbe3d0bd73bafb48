"""What a run's engine was measured to do, as values: accuracy, operations, times, and where the time went.

K exits, S images of the test set. *Straight* is the network run to its last exit for every image, no other head asked.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import offramp
from offramp.evaluation.bounds import Z95, paired_difference
from offramp.files import RunFolder
from offramp.policy import Policy
from offramp.results.times import FeedTimes, Times
from offramp.runtime import Agreement, Tuning

FORMAT = 1  # of the file


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test set, and what is lost against the last exit on the same images.

    Attributes:
        top1: In percent.
        drop: Top-1 of the last exit less this one, in percentage points; negative where the last exit is worse.
        low: Lower end of the drop's 95 % interval over images.
        high: Its upper end.
    """

    top1: float
    drop: float
    low: float
    high: float


def accuracy(right_S: Tensor, full_S: Tensor) -> Accuracy:
    """The accuracy of answers that are right where `right_S` says, against the last exit's, right where `full_S` says.

    The interval is that of Agresti and Min (2005) for paired shares: see `paired_difference`.
    """
    images = len(right_S)
    lost, gained = int((full_S & ~right_S).sum()), int((right_S & ~full_S).sum())
    centre, error = map(float, paired_difference(lost, gained, images))
    half = Z95 * error
    top1 = 100 * right_S.double().mean().item()
    return Accuracy(top1, 100 * (lost - gained) / images, 100 * (centre - half), 100 * (centre + half))


@dataclass(frozen=True)
class Latency:
    """How long single images take, in milliseconds: half, 95 % and 99 % of them no longer than this."""

    p50: float
    p95: float
    p99: float


def latency(seconds: Sequence[float]) -> Latency:
    """The latencies of calls that took so many seconds."""
    return Latency(*(1000 * float(value) for value in np.percentile(np.asarray(seconds), [50, 95, 99])))


@dataclass(frozen=True)
class Speed:
    """How fast images are answered.

    Attributes:
        ms: Milliseconds per image, the median over rounds.
        times: How many times as fast as the network run straight, the median over rounds of both in the same round.
        low: Lower end of its 90 % interval, by order statistics.
        high: Its upper end.
        latency: Of single images, where they were fed one at a time.
    """

    ms: float
    times: float
    low: float
    high: float
    latency: Latency | None = None

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return 1000 / self.ms


@dataclass(frozen=True)
class Account:
    """Where the engine's time went; shares of it that sum to 1.

    Attributes:
        stages: What the stages would take for the same images at the speed they have when the network is run straight.
        slower: What both took beyond that: fewer rows at a time, and rows of images that had left. Negative where they
            were faster.
        exits: What the heads that were asked would take at that speed.
        rest: Deciding who leaves, dropping rows, queues, Python.
        idle_rows: Share of the rows that stages ran on although their images had left.
    """

    stages: float
    slower: float
    exits: float
    rest: float
    idle_rows: float


def account(
    *,
    wall: float,
    segments: float,
    rows_K: Sequence[int],
    head_rows_K: Sequence[int],
    left_K: Sequence[int],
    stages_K: Sequence[int],
    heads_K: Sequence[int],
    straight_operations: int,
    straight_seconds: float,
) -> Account:
    """The account of the seconds that an engine took for some images.

    Args:
        wall: In all.
        segments: Of these, in stages and heads.
        rows_K: Rows that each stage was run on.
        head_rows_K: Rows that each head was run on.
        left_K: Images that left at each exit.
        stages_K: Operations of each stage for one image.
        heads_K: Of each head.
        straight_operations: Of one image run straight.
        straight_seconds: Of one image run straight.
    """
    needed_K = [sum(left_K[k:]) for k in range(len(left_K))]
    second = straight_seconds / max(straight_operations, 1)  # of one operation
    stages = second * sum(needed * count for needed, count in zip(needed_K, stages_K, strict=True))
    exits = second * sum(rows * count for rows, count in zip(head_rows_K, heads_K, strict=True))
    return Account(
        stages=stages / wall,
        slower=(segments - stages - exits) / wall,
        exits=exits / wall,
        rest=(wall - segments) / wall,
        idle_rows=1 - sum(needed_K) / sum(rows_K),
    )


def to_measured(exit_ms_K: Sequence[float], left_K: Sequence[int], ms: float) -> tuple[float, ...]:
    """Milliseconds of an image that leaves at each exit, as parts of the network suggest, brought to what was measured.

    Args:
        exit_ms_K: From the times of stages and exits by themselves.
        left_K: Images that left at each exit.
        ms: Milliseconds per image that the engine took for these.
    """
    expected = sum(left * time for left, time in zip(left_K, exit_ms_K, strict=True)) / sum(left_K)
    return tuple(time * ms / expected for time in exit_ms_K)


@dataclass(frozen=True)
class Mode:
    """One way of giving images to the engine: batches of one size, or a stream.

    Attributes:
        name: The size of a batch, or `stream`.
        images: How many were timed in each round.
        asks: The exits whose heads run, from 1; the last alone where the engine runs straight on.
        accuracy: Of the policy with no other exit open, on the plain network's logits of the test set.
        operations: Per image of the test set: stages up to the exit taken, and the heads that are asked.
        promised: The speed-up by operations on the images timed: those of the network run straight over those of the
            whole policy, also where the plan closes exits or runs straight on.
        engine: How fast the engine was.
        exits: How fast the network cut at each exit was; the last is the network run straight.
        chunks: Images of each of those that were run at a time, the fastest of a few sizes; None: a whole batch.
        straight_form: The form of these, the fastest for the network run straight.
        account: Where the engine's time went.
        agreement: Whether the engine answered the timed images as the policy does.
        exit_ms: Milliseconds of an image that leaves at each exit, were all exits asked.
    """

    name: str
    images: int
    asks: tuple[int, ...]
    accuracy: Accuracy
    operations: float
    promised: float
    engine: Speed
    exits: tuple[Speed, ...]
    chunks: tuple[int | None, ...]
    straight_form: str
    account: Account
    agreement: Agreement
    exit_ms: tuple[float, ...]

    @property
    def realised(self) -> float:
        """The measured speed-up over the promised one.

        Its interval, in `to_json`, is that of the measured speed-up over `promised` as a constant: it covers timing,
        and not that other images would leave elsewhere.
        """
        return self.engine.times / self.promised

    @property
    def straight(self) -> Speed:
        """How fast the network run straight was."""
        return self.exits[-1]

    def to_json(self) -> dict[str, Any]:
        """JSON values; accuracies in percent, shares in [0, 1]."""
        low, high = self.engine.low / self.promised, self.engine.high / self.promised
        return {
            **dataclasses.asdict(self),
            "engine": _speed_json(self.engine),
            "exits": [
                {"exit": k, **_speed_json(speed), "chunk": chunk}
                for k, (speed, chunk) in enumerate(zip(self.exits, self.chunks, strict=True), 1)
            ],
            "realised": {"value": self.realised, "low": low, "high": high},
        }


def _speed_json(speed: Speed) -> dict[str, Any]:
    return {**dataclasses.asdict(speed), "images_per_second": speed.images_per_second}


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        policy: Who leaves where.
        policy_file: Where it was read; None where it was found here or given.
        weights: Hash of the network's weights.
        conditions: What times depend on: device, threads, versions, how busy the machine was.
        tuning: How the engine was set up for this machine.
        tuned_on: Name of the part whose images it was tuned on.
        accuracy: Of the engine's own answers to the test images, in the form it was tuned to and with no exit closed.
        operations: Per image, likewise: stages up to the exit taken, and the heads that may answer.
        asks: These exits, from 1.
        exit_operations: Of the network cut at each exit, without other heads; the last is the network run straight.
        modes: Batches of each size, then the stream.
        agreement: Whether these answers, given in a stream, are the policy's.
    """

    run: RunFolder
    policy: Policy
    policy_file: Path | None
    weights: str
    device: str
    conditions: dict[str, Any]
    tuning: Tuning
    tuned_on: str
    test: str
    fingerprint: str
    images: int
    accuracy: Accuracy
    operations: float
    asks: tuple[int, ...]
    exits: tuple[Accuracy, ...]
    exit_operations: tuple[int, ...]
    modes: tuple[Mode, ...]
    agreement: Agreement
    written: tuple[Path, ...] = ()

    @property
    def wrong(self) -> dict[str, int]:
        """Answers that are not the policy's, by where they were given; empty where all is well."""
        agreements = {**{mode.name: mode.agreement for mode in self.modes}, self.test: self.agreement}
        return {name: agreement.wrong for name, agreement in agreements.items() if agreement.wrong}

    @property
    def times(self) -> Times:
        """The times alone."""
        feeds = [
            FeedTimes(
                mode.name,
                mode.accuracy.top1,
                mode.engine.ms,
                mode.engine.times,
                mode.engine.low,
                mode.engine.high,
                tuple(speed.ms for speed in mode.exits),
            )
            for mode in self.modes
        ]
        return Times(self.device, self.conditions["threads"], tuple(exit.top1 for exit in self.exits), tuple(feeds))

    def to_json(self) -> dict[str, Any]:
        """JSON values, as `bench.json` holds them; accuracies in percent, shares in [0, 1], times in milliseconds."""
        return {
            "format": FORMAT,
            "offramp": offramp.__version__,
            "weights": self.weights,
            "device": self.device,
            "conditions": self.conditions,
            "data": {"test": self.test, "fingerprint": self.fingerprint, "images": self.images},
            "tuned_on": self.tuned_on,
            "policy": dataclasses.asdict(self.policy),
            "policy_file": None if self.policy_file is None else str(self.policy_file),
            **dataclasses.asdict(self.accuracy),
            "operations": self.operations,
            "asks": self.asks,
            "exits": [
                {"exit": k, **dataclasses.asdict(exit), "operations": operations}
                for k, (exit, operations) in enumerate(zip(self.exits, self.exit_operations, strict=True), 1)
            ],
            "modes": {mode.name: mode.to_json() for mode in self.modes},
            "agreement": dataclasses.asdict(self.agreement),
            "tuning": self.tuning.to_json(),
            "exit_ms": {mode.name: list(mode.exit_ms) for mode in self.modes},
        }
