"""What the HTTP side and the scheduler know of each other: requests go in, answers come back, nothing else.

The scheduler runs in a thread of its own and calls back from there; it knows no HTTP, and the HTTP side no network.
Exits and rungs are counted from 1 here and in every answer, labels from 0.

K exits, N classes, C channels, H and W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from offramp.errors import OfframpError
from offramp.policy import Policy


@dataclass(frozen=True)
class Served:
    """What is served: a network's name and how its answers read.

    Attributes:
        fingerprint: Of weights and policies together; changes with a reload.
        ladder: Policies by rising certified risk, one measure for all; the first is what runs without load. One rung
            where there is no ladder.
        promises: What the certificate of each rung says, in words; None where a rung has none.
        operations_K: Operations of an image that leaves at each exit, as a share of the whole network's.
    """

    name: str
    fingerprint: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    ladder: tuple[Policy, ...]
    promises: tuple[str | None, ...]
    operations_K: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """What one exit says of an image that was asked to be shown exit by exit.

    Attributes:
        exit: From 1.
        probabilities_N: On the CPU.
        threshold: What `confidence` has to reach to leave here; None at the last exit.
    """

    exit: int
    label: int
    confidence: float
    threshold: float | None
    probabilities_N: Tensor
    operations: float


@dataclass(frozen=True)
class Answer:
    """The answer to one image.

    Attributes:
        exit: The exit that answered, from 1.
        operations: As a share of the whole network's.
        rung: Of the ladder, from 1.
        in_time: False where the deadline cut it short: the answer is the last exit's that was reached.
        queued_ms: Waiting, before the first segment and between segments.
        computed_ms: In segments, each counted whole, with the images it shared it with.
        fingerprint: Of what answered.
    """

    label: int
    confidence: float
    exit: int
    operations: float
    rung: int
    in_time: bool
    queued_ms: float
    computed_ms: float
    fingerprint: str


class RefusedError(OfframpError):
    """A request that is not taken, or that cannot be answered any more.

    Attributes:
        reason: `full`, `draining`, `deadline` (time was up before any exit), `not finite` (the network's logits), or
            `replaced` (see `Request.fingerprint`).
        retry_after: Seconds after which a place is expected to be free, from the measured rate; None if never.
    """

    def __init__(self, message: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_after = reason, retry_after


@dataclass(frozen=True, eq=False)
class Request:
    """One image to be answered. Both callbacks are called by the scheduler's thread and must not block.

    Attributes:
        image_CHW: Prepared as in training, float32.
        on_done: Called once, with the answer or with why there is none.
        deadline: Of `time.perf_counter`, in seconds: the best answer that is there by then is given.
        rung: At least this rung, from 1, whatever the load: for one who takes a cheaper promise.
        on_step: Called after each exit. Such an image goes alone through every exit up to the one that answers.
        fingerprint: Of the `Served` that the image was prepared for: where another one has taken over meanwhile, the
            request is refused as `replaced`, to be prepared again. None: what is served prepares images alike.
    """

    image_CHW: Tensor
    on_done: Callable[["Answer | RefusedError"], None]
    deadline: float | None = None
    rung: int = 1
    on_step: Callable[[Step], None] | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """How the scheduler stands.

    Attributes:
        waiting_K: Images before each segment, by its first stage; segments that begin elsewhere have 0.
        rung: New images run on it, from 1.
        rate: Images answered a second, lately; 0 before the first.
        alarm: What the guard has found, in words; None while nothing.
    """

    waiting_K: tuple[int, ...]
    capacity: int
    rung: int
    rate: float
    is_ready: bool
    alarm: str | None


class Schedules(ABC):
    """The scheduler, as the HTTP side sees it. Every method may be called from any thread."""

    @property
    @abstractmethod
    def served(self) -> Served:
        """What answers new requests."""

    @abstractmethod
    def refusal(self, before: int = 0) -> RefusedError | None:
        """What an image would be refused with now, with so many that come before it; None: there is a place.

        Asked of every request, several times, so it takes no lock and a time that does not grow with what waits.
        """

    @abstractmethod
    def submit(self, request: Request) -> Callable[[], None]:
        """Take an image in.

        Returns:
            A function that gives its place back: for a client that has hung up. `on_done` is not called after it.

        Raises:
            RefusedError: There is no place, or the server drains.
        """

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """How it stands."""

    @abstractmethod
    def drain(self, seconds: float) -> bool:
        """Take nothing more in and answer what is there, for at most so long; what remains then is refused.

        Returns:
            Whether all was answered.
        """
