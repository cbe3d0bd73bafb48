"""How long images take, as `offramp bench` measured it: read back from `bench.json` for a run's page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offramp.json_files import read
from offramp.policy import Policy


@dataclass(frozen=True)
class _Measure:
    name: str


@dataclass(frozen=True)
class _Policy:
    thresholds: tuple[float, ...]
    measure: _Measure


@dataclass(frozen=True)
class _Conditions:
    threads: int


@dataclass(frozen=True)
class _Accuracy:
    top1: float


@dataclass(frozen=True)
class _Speed:
    ms: float


@dataclass(frozen=True)
class _EngineSpeed(_Speed):
    times: float
    low: float
    high: float


@dataclass(frozen=True)
class _Mode:
    accuracy: _Accuracy
    engine: _EngineSpeed
    exits: tuple[_Speed, ...]


@dataclass(frozen=True)
class _File:
    """What is read of `bench.json`."""

    weights: str
    device: str
    conditions: _Conditions
    policy: _Policy
    exits: tuple[_Accuracy, ...]
    modes: Mapping[str, _Mode]


def title(feed: str) -> str:
    """`batch 32` for the size of a batch; `stream`."""
    return f"batch {feed}" if feed.isdigit() else feed


@dataclass(frozen=True)
class FeedTimes:
    """Times of images that are fed in one way.

    Attributes:
        name: The size of a batch, or `stream`.
        top1: Accuracy of the engine, in percent.
        ms: Milliseconds per image that the engine takes.
        times: How many times as fast as the network run straight; the 90 % interval is `low` to `high`.
        exit_ms: Milliseconds per image of the network cut at each exit; the last is the network run straight.
    """

    name: str
    top1: float
    ms: float
    times: float
    low: float
    high: float
    exit_ms: tuple[float, ...]


@dataclass(frozen=True)
class Times:
    """What was measured on one machine, and the accuracy of each exit in percent."""

    device: str
    threads: int
    exit_top1: tuple[float, ...]
    feeds: tuple[FeedTimes, ...]


def read_times(path: Path, weights: str, policy: Policy) -> Times | None:
    """The times in `bench.json`; None where there is none, or it is of other weights or another policy.

    Raises:
        OfframpError: A damaged file.
    """
    if not path.is_file():
        return None
    file = read(path, _File)
    asked = (weights, policy.thresholds, policy.measure.name)
    if (file.weights, file.policy.thresholds, file.policy.measure.name) != asked:
        return None
    feeds = []
    for name, mode in file.modes.items():
        engine, exit_ms = mode.engine, tuple(exit.ms for exit in mode.exits)
        feeds.append(FeedTimes(name, mode.accuracy.top1, engine.ms, engine.times, engine.low, engine.high, exit_ms))
    exit_top1 = tuple(exit.top1 for exit in file.exits)
    return Times(file.device, file.conditions.threads, exit_top1, tuple(feeds))
