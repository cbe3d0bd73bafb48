"""A server over a scheduler without a network, and a client that writes bytes as they are."""

import contextlib
import http.client
import io
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from PIL import Image

from offramp.data import Inputs
from offramp.policy import EVERYBODY, Policy
from offramp.serve.app import App
from offramp.serve.card import Card
from offramp.serve.contract import Answer, RefusedError, Request, Schedules, Served, Snapshot, Step
from offramp.serve.gate import Gate
from offramp.serve.limits import Limits
from offramp.serve.server import Server, listen

NAMES = ("zero", "one", "two")
SERVED = Served(
    name="fake",
    fingerprint="f" * 64,
    class_names=NAMES,
    image_shape=(3, 8, 8),
    ladder=(Policy((0.9, 0.8, EVERYBODY)), Policy((0.7, 0.6, EVERYBODY))),
    promises=("At most 1 % of answers are worse.", None),
    operations_K=(0.2, 0.5, 1.0),
)
INPUTS = Inputs(NAMES, (3, 8, 8), (0.0,) * 3, (1.0,) * 3, "central-fit")
CARD = Card(INPUTS, (80.0, 90.0, 95.5), "pictures", ())


class Fake(Schedules):
    """Answers with the brightest channel, from a thread of its own; `hold` keeps what is submitted waiting."""

    def __init__(self, capacity: int = 8, seconds: float = 0.0) -> None:
        self.now = SERVED
        self.capacity, self.seconds = capacity, seconds
        self.hold, self.is_draining, self.is_warm = threading.Event(), False, True
        self.waiting: list[Request] = []
        self.cancelled = self.submitted = 0
        self.alarm: str | None = None
        self.outcome: Callable[[Answer], Answer | RefusedError] = lambda answer: answer
        self._lock, self._queue = threading.Lock(), queue.SimpleQueue[Request | None]()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def served(self) -> Served:
        return self.now

    def refusal(self, before: int = 0) -> RefusedError | None:
        if self.is_draining:
            return RefusedError("It drains.", "draining")
        return RefusedError("Full.", "full", 2.5) if len(self.waiting) + before >= self.capacity else None

    def submit(self, request: Request) -> Callable[[], None]:
        with self._lock:
            if (refusal := self.refusal()) is not None:
                raise refusal
            if request.fingerprint != self.now.fingerprint:
                raise RefusedError("Prepare it again.", "replaced")
            self.waiting.append(request)
            self.submitted += 1
        self._queue.put(request)

        def cancel() -> None:
            with self._lock:
                if request in self.waiting:
                    self.waiting.remove(request)
                    self.cancelled += 1

        return cancel

    def snapshot(self) -> Snapshot:
        waiting = len(self.waiting)
        is_ready = self.is_warm and waiting < self.capacity
        return Snapshot((waiting, 0, 0), self.capacity, 1, 10.0, is_ready, self.alarm)

    def drain(self, seconds: float) -> bool:
        self.is_draining = True
        until = time.monotonic() + seconds
        while self.waiting and time.monotonic() < until:
            time.sleep(0.005)
        with self._lock:
            remaining, self.waiting = self.waiting, []
        for request in remaining:
            request.on_done(RefusedError("It has ended.", "draining"))
        self._queue.put(None)
        return not remaining

    def _work(self) -> None:
        while (request := self._queue.get()) is not None:
            while self.hold.is_set():
                time.sleep(0.002)
            time.sleep(self.seconds)
            label = int(request.image_CHW.mean((1, 2)).argmax())
            if request.on_step is not None:
                for number, threshold in ((1, 0.9), (2, 0.8)):
                    probabilities = torch.tensor([0.1, 0.1, 0.1]).index_fill(0, torch.tensor(label), 0.45 * number)
                    confidence = 0.45 * number
                    request.on_step(Step(number, label, confidence, threshold, probabilities, number / 3))
            with self._lock:
                if request not in self.waiting:
                    continue
                self.waiting.remove(request)
            answer = Answer(label, 0.9, 2, 0.5, request.rung, request.deadline is None, 1.5, 2.5, self.now.fingerprint)
            request.on_done(self.outcome(answer))


@dataclass
class Serving:
    """A server that runs in a thread of this process."""

    app: App
    schedules: Fake
    server: Server
    port: int
    token: str | None = None
    kept: list[socket.socket] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def predict(
        self, body: bytes, kind: str = "image/png", path: str = "/v1/predict", **headers: str
    ) -> tuple[int, Any]:
        status, _, content = self.ask("POST", path, body, {"Content-Type": kind, **headers})
        return status, json.loads(content)

    def open(self, first: bytes = b"", **options: Any) -> socket.socket:
        """A connection; what is said first is sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        for number, value in options.items():
            connection.setsockopt(socket.SOL_SOCKET, getattr(socket, number), value)
        connection.sendall(first)
        self.kept.append(connection)
        return connection

    def counted(self, start: str) -> float:
        """A line of `/metrics`."""
        lines = [line for line in self.app.metrics.text().decode().splitlines() if line.startswith(start)]
        return float(lines[0].split()[-1]) if lines else 0.0


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.005)
    return False


def everything(connection: socket.socket, seconds: float = 5.0) -> bytes:
    """What comes until the server closes; nothing where it does not within the seconds."""
    connection.settimeout(seconds)
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            content += chunk
    return content


def an_answer(connection: socket.socket) -> bytes:
    """One answer, whose body has the length it says; a connection may go on after it."""
    connection.settimeout(5)
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65536)
    head, _, body = content.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    try:
        everything(connection, seconds)
    except TimeoutError:
        return False
    return True


@contextlib.contextmanager
def serving(schedules: Fake | None = None, limits: Limits | None = None, **more: Any) -> Iterator[Serving]:
    schedules = schedules or Fake()
    gate = Gate(more.pop("token", None), more.pop("hosts", ()))
    grace = more.pop("grace", 5)
    app = App(schedules, more.pop("card", CARD), limits=limits, gate=gate, **more)
    server = Server(app, schedules, grace=grace, reload=more.get("reload"))
    listening = listen("127.0.0.1", 0, app.limits.max_connections)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    assert wait_for(lambda: server.started)
    one = Serving(app, schedules, server, port)
    try:
        yield one
    finally:
        for connection in one.kept:
            connection.close()
        schedules.hold.clear()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def picture(
    colour: int = 1, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB", **options: Any
) -> bytes:
    """An image whose brightest channel is `colour`, which is the label it is answered with."""
    channels = [200 if channel == colour else 20 for channel in range(3)]
    file = io.BytesIO()
    Image.new("RGB", size, tuple(channels)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def multipart(*contents: bytes, names: list[bytes] | None = None, boundary: bytes = b"edge") -> bytes:
    names = names or [b"%d.png" % number for number in range(len(contents))]
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n' % (boundary, name, content)
        for name, content in zip(names, contents, strict=True)
    ]
    return b"".join(parts) + b"--%s--\r\n" % boundary


def post(content: bytes, *headers: bytes) -> bytes:
    """A whole request, as bytes."""
    lines = [b"POST /v1/predict HTTP/1.1", b"Host: localhost", b"Content-Type: image/png", *headers]
    if not any(b"ength" in header or b"ncoding" in header for header in headers):
        lines.append(b"Content-Length: %d" % len(content))
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    """One server of the tests of a file, for those that leave it as it is."""
    with serving() as one:
        yield one


def quick(**changes: Any) -> Limits:
    """Limits with short times."""
    return replace(Limits(head_seconds=0.3, body_seconds=0.3, write_seconds=0.3, idle_seconds=0.3), **changes)
