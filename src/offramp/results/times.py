"""How long images take, as `offramp bench` measured it: read back from `bench.json` for a run's page."""

from dataclasses import dataclass
from pathlib import Path

from offramp.policy import Policy
from offramp.runs import read_json

_SPEED = {"ms": float}
_READ = {
    "weights": str,
    "device": str,
    "conditions": {"threads": int},
    "policy": {"thresholds": [float], "measure": {"name": str}},
    "exits": [{"top1": float}],
    "modes": {
        str: {
            "accuracy": {"top1": float},
            "engine": {**_SPEED, "times": float, "low": float, "high": float},
            "exits": [_SPEED],
        }
    },
}


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
    content = read_json(path, _READ)
    thresholds, measure = content["policy"]["thresholds"], content["policy"]["measure"]["name"]
    asked = (weights, list(policy.thresholds), policy.measure.name)
    if (content["weights"], thresholds, measure) != asked:
        return None
    feeds = []
    for name, mode in content["modes"].items():
        engine, exit_ms = mode["engine"], tuple(exit["ms"] for exit in mode["exits"])
        speed = engine["ms"], engine["times"], engine["low"], engine["high"]
        feeds.append(FeedTimes(name, mode["accuracy"]["top1"], *speed, exit_ms))
    exit_top1 = tuple(exit["top1"] for exit in content["exits"])
    return Times(content["device"], content["conditions"]["threads"], exit_top1, tuple(feeds))
