"""What a client may do to a connection; each attack is also made on a server without the limit, where it succeeds."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.serve.conftest import (
    INPUTS,
    Fake,
    Serving,
    an_answer,
    everything,
    is_closed_within,
    picture,
    post,
    quick,
    serving,
    wait_for,
)

from offramp.serve.card import Card
from offramp.serve.limits import Limits

NO_LIMITS = Limits(head_seconds=60, body_seconds=60, write_seconds=60, idle_seconds=60)
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def drip(connection: socket.socket, content: bytes, every: float = 0.05) -> threading.Thread:
    """A byte at a time, until it is closed."""

    def send() -> None:
        try:
            for position in range(len(content)):
                connection.sendall(content[position : position + 1])
                time.sleep(every)
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


SLOW: dict[str, tuple[bytes, bytes]] = {  # what is sent at once, and then a byte at a time
    "head": (b"", b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 1000),
    "body": (
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n",
        b"x" * 999,
    ),
    "chunked body": (
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n" * 300,
    ),
    "body that was refused already": (
        b"POST /v1/predict?nothing=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
        b"x" * 999,
    ),
    "nothing": (b"", b""),
    "empty lines after an answer": (ALIVE, b"\r\n" * 400),
}  # fmt: skip


def test_slow_clients_lose_their_connections() -> None:
    """uvicorn's own timeout is between requests, and every byte takes it away."""
    with serving(limits=quick()) as server:
        connections = {attack: server.open(at_once) for attack, (at_once, _) in SLOW.items()}
        threads = [drip(connections[attack], slowly) for attack, (_, slowly) in SLOW.items()]
        assert all([is_closed_within(connection, 3) for connection in connections.values()])
        for thread in threads:
            thread.join(3)
        assert wait_for(lambda: not server.server.server_state.connections)
    with serving(limits=NO_LIMITS) as server:
        connections = {attack: server.open(at_once) for attack, (at_once, _) in SLOW.items()}
        for attack, (_, slowly) in SLOW.items():
            drip(connections[attack], slowly)
        time.sleep(1)  # more than twice as long
        assert not [attack for attack, connection in connections.items() if is_closed_within(connection, 0.05)]


@pytest.mark.parametrize("part", ["head", "body"])
def test_it_is_told_why(part: str) -> None:
    with serving(limits=quick()) as server:
        connection = server.open(SLOW[part][0])
        drip(connection, SLOW[part][1])
        answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(
            b'{"error":"The request\'s %s took longer than 0.3 seconds to come in."}' % part.encode()
        )
        assert server.counted('offramp_refusals_total{reason="slow"}') == 1


def test_a_body_that_was_refused_because_all_places_are_taken_does_not_hold_its_connection() -> None:
    schedules = Fake(capacity=1)
    with serving(schedules, limits=quick()) as server:
        schedules.hold.set()
        server.open(post(picture()))
        assert wait_for(lambda: schedules.submitted == 1)
        connection = server.open(SLOW["body"][0])
        drip(connection, SLOW["body"][1])
        assert everything(connection, 3).startswith(b"HTTP/1.1 429 ")


def test_a_slow_but_steady_client_within_the_time_is_answered() -> None:
    with serving(limits=quick(body_seconds=5, head_seconds=5)) as server:
        connection = server.open()
        drip(connection, post(picture()), every=0.001)
        connection.settimeout(5)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_client_that_does_not_read_its_answer_loses_its_connection() -> None:
    """The system holds what it can; what is beyond that stays in the server's memory."""
    large = Card(INPUTS, samples=((picture() + bytes(30 * 2**20), None),))

    def unread(server: Serving) -> bool:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        server.kept.append(connection)
        connection.sendall(b"GET /v1/samples/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(1000)
        gone = wait_for(lambda: not server.server.server_state.connections, 1.5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        return gone

    with serving(limits=quick(), card=large) as server:
        assert unread(server)
        assert server.counted('offramp_refusals_total{reason="unread"}') == 1
    with serving(limits=NO_LIMITS, card=large) as server:
        assert not unread(server)


@pytest.mark.parametrize(
    ("head", "whole"),
    [
        (b"X-Large: " + b"x" * 30_000, True),
        (b"X-Large: " + b"x" * 30_000, False),
        (b"\r\n".join(b"X-%d: x" % n for n in range(200)), True),
    ],
)
def test_a_large_head_is_refused(head: bytes, whole: bool) -> None:
    """httptools itself has no limit."""
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + head + (b"\r\n\r\n" if whole else b"")
    with serving() as server:
        answer = everything(server.open(ask))
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert answer.endswith(b'or 100 lines."}')
    if whole:
        with serving(limits=Limits(max_head=2**20, max_headers=1000)) as server:
            assert server.open(ask).recv(12) == b"HTTP/1.1 200"


def test_a_long_path_is_refused() -> None:
    with serving() as server:
        assert everything(server.open(b"GET /" + b"x" * 2**16)).startswith(b"HTTP/1.1 431 ")


def test_connections_above_the_limit_are_told_so_and_leave_no_trace() -> None:
    with serving(limits=Limits(max_connections=8)) as server:
        held = [server.open() for _ in range(8)]
        assert wait_for(lambda: len(server.server.server_state.connections) == 8)
        for _ in range(30):
            answer = everything(server.open())
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'{"error":"The server has as many connections as it may."}' in answer
        assert len(server.server.server_state.connections) == 8
        held[0].close()
        assert wait_for(lambda: len(server.server.server_state.connections) == 7)
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.counted('offramp_refusals_total{reason="connections"}') == 30
    with serving(limits=Limits(max_connections=64)) as server:
        for _ in range(38):
            server.open()
        assert wait_for(lambda: len(server.server.server_state.connections) == 38)


def test_requests_before_the_last_answer_are_not_kept() -> None:
    """Unprotected, uvicorn keeps all of them: a connection of one client fills the memory."""
    with serving(Fake(capacity=1000)) as server:
        server.schedules.hold.set()
        connection = server.open(post(picture()) + post(picture()) * 100)
        assert wait_for(lambda: server.schedules.submitted == 1)
        connection.sendall(post(picture()) * 100)
        time.sleep(0.2)
        (one,) = server.server.server_state.connections
        assert server.schedules.submitted == 1
        assert not one.pipeline  # type: ignore[union-attr]
        server.schedules.hold.clear()
        answer = everything(connection)
        assert answer.count(b"HTTP/1.1 200") == 1  # and then it is closed: the rest may be asked again

    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    with pytest.MonkeyPatch.context() as patch, serving(Fake(capacity=1000)) as server:
        patch.setattr("offramp.serve.connection.Connection.on_message_begin", HttpToolsProtocol.on_message_begin)
        server.schedules.hold.set()
        server.open(post(picture()) * 100)
        assert wait_for(lambda: server.schedules.submitted == 1)
        (one,) = server.server.server_state.connections
        assert wait_for(lambda: len(one.pipeline) == 99)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHo st: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"CONNECT evil:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    ],
)  # fmt: skip
def test_what_two_servers_might_read_differently_is_no_request(content: bytes, shared: Serving) -> None:
    """Smuggling: a proxy and this server have to agree where a request ends."""
    answer = everything(shared.open(content))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 "))
    assert answer.count(b"HTTP/1.1") == 1
    assert b'{"error":' in answer


def test_an_upgrade_is_not_made() -> None:
    with serving(limits=quick()) as server:
        ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert server.open(ask).recv(12) == b"HTTP/1.1 200"


def test_a_connection_is_used_again(shared: Serving) -> None:
    connection = shared.open()
    for _ in range(5):
        connection.sendall(ALIVE)
        assert an_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("end", [lambda one: one.close(), lambda one: one.shutdown(socket.SHUT_WR)])
def test_a_client_that_ends_in_the_middle_leaves_nothing(end: Callable[[socket.socket], Any]) -> None:
    with serving() as server:
        for content in (b"", ALIVE[:10], post(picture())[:-10], post(picture())[:60]):
            end(server.open(content))
        assert wait_for(lambda: not server.server.server_state.connections)
        assert server.app._budget.held == 0
