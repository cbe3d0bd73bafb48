"""What `GET /metrics` says, in a registry of its own: two servers in one process do not share counters."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from offramp.serve.contract import Answer, Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class _Counters(dict[tuple[object, ...], Counter]):
    """The counters of a family by their labels: looking them up there takes longer than counting."""

    def __init__(self, family: Counter) -> None:
        self._family = family

    def __missing__(self, labels: tuple[object, ...]) -> Counter:
        counter = self[labels] = self._family.labels(*map(str, labels))
        return counter


class Metrics:
    """Counters of the HTTP side and what the scheduler says of itself.

    Args:
        snapshot: How the scheduler stands; asked for when metrics are read.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self.registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self.registry}
        families = {
            "requests": Counter("offramp_requests", "Requests, by path and status.", ["path", "status"], **more),
            "refusals": Counter("offramp_refusals", "Images and requests refused, by reason.", ["reason"], **more),
            "exits": Counter("offramp_exits", "Images answered, by exit.", ["exit"], **more),
            "rungs": Counter("offramp_rungs", "Images answered, by rung of the ladder.", ["rung"], **more),
        }
        self._counters = {name: _Counters(family) for name, family in families.items()}
        self._late = Counter("offramp_late", "Images answered by the best exit reached when time was up.", **more)
        self._gone = Counter("offramp_hung_up", "Requests whose client hung up before the answer.", **more)
        self._seconds = Histogram("offramp_request_seconds", "Of predict, whole.", buckets=_SECONDS, **more)
        self._queued = Histogram("offramp_queued_seconds", "Of an image, waiting.", buckets=_SECONDS, **more)
        self._computed = Histogram("offramp_computed_seconds", "Of an image, in segments.", buckets=_SECONDS, **more)
        self._batches = Histogram(
            "offramp_batch_rows", "Images run together, by stage.", ["stage"], buckets=_ROWS, **more
        )
        self.registry.register(_Standing(snapshot))
        ProcessCollector(registry=self.registry)

    def request(self, path: str, status: int) -> None:
        """A request was answered; `path` is a route, not what was asked for."""
        self._counters["requests"][path, status].inc()

    def refused(self, reason: str) -> None:
        """An image or a request was refused."""
        self._counters["refusals"][reason,].inc()

    def hung_up(self) -> None:
        """A client has gone before its answer."""
        self._gone.inc()

    def answered(self, answer: Answer) -> None:
        """An image was answered."""
        self._counters["exits"][answer.exit,].inc()
        self._counters["rungs"][answer.rung,].inc()
        self._queued.observe(answer.queued_ms / 1000)
        self._computed.observe(answer.computed_ms / 1000)
        if not answer.in_time:
            self._late.inc()

    def predicted(self, seconds: float) -> None:
        """A request to predict was answered, refused or not."""
        self._seconds.observe(seconds)

    def batch(self, stage: int, rows: int, seconds: float) -> None:
        """A segment was run, from its first stage (from 0), on so many images."""
        self._batches.labels(str(stage + 1)).observe(rows)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Standing(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> "Iterator[Metric]":
        now = self._snapshot()
        waiting = GaugeMetricFamily("offramp_waiting", "Images waiting, by stage.", labels=["stage"])
        for stage, count in enumerate(now.waiting_K, 1):
            waiting.add_metric([str(stage)], count)
        yield waiting
        for name, text, value in (
            ("capacity", "Images that may be under way.", now.capacity),
            ("rung", "Of the ladder, that new images run on.", now.rung),
            ("rate", "Images answered a second, lately.", now.rate),
            ("ready", "1: warm, and there is a place.", now.is_ready),
            (
                "guard_alarm",
                "1: more early answers disagree with the last exit than the certificate allows.",
                bool(now.alarm),
            ),
        ):
            yield GaugeMetricFamily(f"offramp_{name}", text, value=float(value))
