"""What a run's engine was measured to do, as values: accuracy, operations, times, and where the time went.

K exits, S images of the test set. *Straight* is the network run to its last exit for every image, no other head asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from torch import Tensor

import offramp
from offramp.evaluation.bounds import Z95, paired_difference
from offramp.files import RunFolder
from offramp.json_files import read
from offramp.policy import Policy
from offramp.runtime import Agreement, Tuning

FORMAT: Literal[2] = 2  # of the file; 1 had some figures twice
Positive = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test set in percent, and what is lost against the last exit on the same images, in points.

    `drop` is negative where the last exit is worse; `low` to `high` is its 95 % interval over images.
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
class CutAccuracy(Accuracy):
    """The same of the network cut at an exit; `operations` are without other heads."""

    operations: int


@dataclass(frozen=True)
class Conditions:
    """What times depend on: see `runtime.timing.conditions`."""

    device: str
    cores: int | None
    threads: int
    kernels_kept: int | None
    load_average: float
    torch: str
    onnxruntime: str | None
    openvino: str | None
    python: str

    def __str__(self) -> str:
        return f"{self.device}, {self.threads} thread{'' if self.threads == 1 else 's'}"


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
        times: How many times as fast as the network run straight, the median over rounds of both in the same round;
            `low` to `high` is its 90 % interval, by order statistics.
        latency: Of single images, where they were fed one at a time.
    """

    ms: Positive
    times: Positive
    low: Positive
    high: Positive
    latency: Latency | None = None

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return 1000 / self.ms


@dataclass(frozen=True)
class CutSpeed(Speed):
    """How fast the network cut at an exit is, with so many images run at a time (`chunk`; None: a whole batch)."""

    chunk: int | None = None


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
        wall: Seconds in all.
        segments: Of these, in stages and heads.
        rows_K: Rows that each stage was run on; `head_rows_K`: that each head was run on.
        left_K: Images that left at each exit.
        stages_K: Operations of each stage for one image; `heads_K`: of each head.
        straight_operations: Of one image run straight, as `straight_seconds`.
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
    """Milliseconds of an image that leaves at each exit, as the times of stages and exits by themselves suggest.

    Brought to the `ms` per image that the engine took for images of which so many left at each exit (`left_K`).
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
    exits: tuple[CutSpeed, ...]
    straight_form: str
    account: Account
    agreement: Agreement
    exit_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.exits) == len(self.exit_ms) > 0:
            raise ValueError(f"times of {len(self.exits)} exits and {len(self.exit_ms)} exit_ms")

    @property
    def title(self) -> str:
        """`batch 32` for the size of a batch; `stream`."""
        return f"batch {self.name}" if self.name.isdigit() else self.name

    @property
    def realised(self) -> float:
        """The measured speed-up over the promised one."""
        return self.engine.times / self.promised

    @property
    def straight(self) -> CutSpeed:
        """How fast the network run straight was."""
        return self.exits[-1]


@dataclass(frozen=True)
class TestImages:
    """The test set, with the hash of what it holds and how many images that are."""

    __test__ = False  # nothing for pytest

    test: str
    fingerprint: str
    images: int


@dataclass(frozen=True)
class Bench:
    """What was measured, as `bench.json` holds it; accuracies in percent, shares in [0, 1], times in milliseconds.

    Attributes:
        weights: Hash of the network's weights.
        conditions: Of the machine before it was busy with this.
        tuned_on: Name of the part whose images the engine was tuned on.
        policy: Who leaves where.
        policy_file: Where it was read; None where it was found here or given.
        accuracy: Of the engine's own answers to the test images, in the form it was tuned to and with no exit closed.
        operations: Per image, likewise: stages up to the exit taken, and the heads that may answer.
        asks: These exits, from 1.
        exits: Of the network cut at each exit; the last is the network run straight.
        modes: Batches of each size, then the stream, by name.
        agreement: Whether these answers, given in a stream, are the policy's.
        tuning: How the engine was set up for this machine.
        written: The files written; not in the file itself.
    """

    weights: str
    conditions: Conditions
    data: TestImages
    tuned_on: str
    policy: Policy
    policy_file: str | None
    accuracy: Accuracy
    operations: float
    asks: tuple[int, ...]
    exits: tuple[CutAccuracy, ...]
    modes: Mapping[str, Mode]
    agreement: Agreement
    tuning: Tuning
    format: Literal[2] = FORMAT
    offramp: str = offramp.__version__
    written: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if {len(mode.exits) for mode in self.modes.values()} != {len(self.exits)}:
            raise ValueError("its modes are not all of the exits that it has, or there is none")

    @property
    def wrong(self) -> dict[str, int]:
        """Answers that are not the policy's, by where they were given; empty where all is well."""
        agreements = {**{name: mode.agreement for name, mode in self.modes.items()}, self.data.test: self.agreement}
        return {name: agreement.wrong for name, agreement in agreements.items() if agreement.wrong}

    def to_json(self) -> dict[str, Any]:
        """JSON values, as the file holds them."""
        values = {**asdict(self), "tuning": self.tuning.to_json()}
        del values["written"]
        return values


def read_bench(folder: RunFolder) -> Bench:
    """What `offramp bench` wrote into a run's folder.

    Raises:
        UsageError: There is no such file, or it is of a newer offramp.
        OfframpError: A damaged file.
    """
    return read(folder.bench, Bench, newest=FORMAT, hint=f"`{folder.command('bench')}` measures it anew.")


@dataclass(frozen=True)
class _Head:
    format: int


def bench_of(folder: RunFolder, weights: str, policy: Policy) -> Bench | None:
    """The same; None where there is none, or it is of an older offramp, other weights or another policy."""
    if not folder.bench.is_file() or read(folder.bench, _Head).format < FORMAT:
        return None
    bench = read_bench(folder)
    is_of_it = (bench.weights, bench.policy.thresholds, bench.policy.measure) == (
        weights,
        policy.thresholds,
        policy.measure,
    )
    return bench if is_of_it else None
