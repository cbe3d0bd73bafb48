"""One connection: uvicorn's protocol over httptools, with the limits that it lacks.

uvicorn has a timeout between requests and nothing else: a client that sends a byte a second keeps its connection, and
every byte takes the timeout away; httptools has no limit on heads; requests that come before the last was answered are
all kept (docs/LOG.md, 30 November). Here every state of a connection has a deadline that bytes do not move.
"""

import asyncio
import http
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from offramp.serve.limits import Limits, RequestError

Refused = Callable[[str], None]
"""Called with the reason of each refusal."""
TurnedAway = Callable[[Scope], RequestError | None]
"""Called with each request's head: what it is refused with, if that needs nothing else."""
WHOLE = "offramp.whole"  # an extension of ASGI: a function that writes a whole answer at once, if it can

COMMON = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
SLOW, BUSY = "slow", "connections"


def raw(error: RequestError) -> bytes:
    """A whole answer, after which the connection is closed."""
    lines = [b"HTTP/1.1 %d %s" % (error.status, http.HTTPStatus(error.status).phrase.encode())]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(error.content))]
    lines += [b"%s: %s" % header for header in [*headers, *error.headers, (b"connection", b"close")]]
    return b"\r\n".join([*lines, b"", error.content])


def json_headers(content: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> list[tuple[bytes, bytes]]:
    """Of an answer in JSON."""
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *COMMON, *more]


class Connection(HttpToolsProtocol):
    """See above. uvicorn makes one of each connection; all but `more` is bound before.

    A state is what is waited for: `head` (a request has begun, or none yet), `body`, `answer` (ours), `idle`.
    """

    def __init__(self, *, limits: Limits, refused: Refused, turned_away: TurnedAway, **more: Any) -> None:
        super().__init__(**more)
        self.limits, self._refused, self._turned_away = limits, refused, turned_away
        self._state, self._timed = "head", ""
        self._head_bytes = 0
        self._is_deaf = False  # what still comes in is not looked at
        self._error: RequestError | None = None
        self._is_turned_away = False  # before its body was there
        self._timer: asyncio.TimerHandle | None = None
        self._fires = self._deadline = math.inf  # of the timer, and of the state
        self._write_timer: asyncio.TimerHandle | None = None
        self._seconds = {"head": limits.head_seconds, "body": limits.body_seconds, "idle": limits.idle_seconds}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one too many."""
        if len(self.connections) >= self.limits.max_connections:
            self._is_deaf = True
            self._refused(BUSY)
            transport.write(raw(RequestError(503, BUSY, "The server has as many connections as it may.", 1)))
            transport.close()
            return
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` says when anything is left to be read
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came in, within the deadline of the state it leads to."""
        if self._is_deaf:
            return
        if self._state in ("head", "idle"):
            self._head_bytes += len(data)
        super().data_received(data)
        if self._state == "head" and self._head_bytes > self.limits.max_head and not self._is_deaf:
            self._error = self._head_too_large()
            self.send_400_response("")
        if not self.transport.is_closing():
            if self._is_turned_away and self._state == "body":
                super().on_response_complete()  # for its timer
            self._set_timer()
        self._is_turned_away = False

    def on_message_begin(self) -> None:
        """The first byte of a request. One that comes before the last was answered is not taken, nor any after it."""
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("pipelined")
        self._state = "head"
        super().on_message_begin()
        self.scope["extensions"] = {WHOLE: self.reply}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """The head is whole."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.limits.max_head or len(self.headers) > self.limits.max_headers:
            self._error = self._head_too_large()
            raise self._error
        super().on_headers_complete()  # it may refuse the path
        self._state, self._head_bytes = "body", 0

    def on_message_complete(self) -> None:
        """The body is whole; it may have been answered before."""
        self._state = "idle" if self.cycle.response_complete else "answer"
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one, which is not read any more."""
        if self._state == "body":
            super().on_response_complete()
            return
        # Without uvicorn's timer: `idle` is one, and setting and cancelling it would take as long as parsing a request.
        self.server_state.total_requests += 1
        if self._state == "answer" and not self.transport.is_closing():
            self.flow.resume_reading()
            self._state = "idle"
            self._set_timer()

    def reply(self, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> bool:
        """Write a whole answer at once; False: not now, and nothing was done."""
        cycle = self.cycle
        if self.flow.write_paused or cycle.disconnected or cycle.response_started:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        close = [] if cycle.keep_alive else [(b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in (*cycle.default_headers, *headers, *close)]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", content]))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        """Spare a request that is refused by its head the task: under ten times the load most are."""
        error = None if self.flow.write_paused else self._turned_away(cast(Scope, self.scope))
        if error is None:
            super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]
        else:
            self._is_turned_away = True
            self.reply(error.status, json_headers(error.content, error.headers), error.content)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, as all errors are answered; not before the answer that is under way."""
        error = self._error or RequestError(400, "http", "This is no HTTP request that is understood here.")
        self._is_deaf = True
        if self._state == "answer":
            self.cycle.keep_alive = False  # closed after it
            return
        if self._state == "head" or not self.cycle.response_started:
            self._refused(error.reason)
            self.transport.write(raw(error))
        self.transport.close()

    def pause_writing(self) -> None:
        """Something is left that the client has not read: give it its time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self._unread)

    def resume_writing(self) -> None:
        """All is read."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _set_timer(self) -> None:
        if self._state == self._timed:
            return
        self._timed = self._state
        self._deadline = self.loop.time() + self._seconds.get(self._state, math.inf)
        if (
            self._deadline < self._fires
        ):  # else it fires too early, and is set anew then: cheaper than with each request
            if self._timer is not None:
                self._timer.cancel()
            self._fire()

    def _fire(self) -> None:
        self._fires = self._deadline
        self._timer = None if math.isinf(self._fires) else self.loop.call_at(self._fires, self._fired)

    def _fired(self) -> None:
        if self.loop.time() < self._deadline:
            self._fire()
        else:
            self._too_slow()

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        self._is_deaf = True
        if self._state == "body" or (self._state == "head" and self._head_bytes):
            self._refused(SLOW)
            if self._state == "head" or not self.cycle.response_started:
                seconds = self._seconds[self._state]
                line = f"The request's {self._state} took longer than {seconds:g} seconds to come in."
                self.transport.write(raw(RequestError(408, SLOW, line)))
        self.transport.close()

    def _unread(self) -> None:
        self._refused("unread")
        self.transport.abort()

    def _head_too_large(self) -> RequestError:
        line = (
            f"First line and headers have more than {self.limits.max_head:,} bytes or {self.limits.max_headers} lines."
        )
        return RequestError(431, "head", line)
