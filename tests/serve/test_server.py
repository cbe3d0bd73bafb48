"""The end of a server, signals, sockets; and that nothing is left behind."""

import os
import socket
import threading
import time

import pytest
from tests.serve.conftest import Fake, an_answer, everything, picture, post, serving, wait_for

from offramp.errors import UsageError
from offramp.serve.server import address, listen


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_and_threads_are_back_where_they_were() -> None:
    with serving():  # what is made once and kept
        pass
    before = descriptors(), threading.active_count()
    with serving() as server:
        server.schedules.hold.set()
        for number in range(40):
            one = server.open(post(picture())[: 40 * number] or b"")
            if number % 2:
                one.close()
        server.open(post(picture(size=(300, 300))))
        server.schedules.hold.clear()
        server.predict(picture(size=(300, 300)))
    assert wait_for(lambda: (descriptors(), threading.active_count()) == before), (descriptors(), before)


def test_what_was_accepted_is_answered_before_the_end() -> None:
    with serving(Fake(capacity=8)) as server:
        server.schedules.hold.set()
        accepted = [server.open(post(picture(number))) for number in range(3)]
        assert wait_for(lambda: server.schedules.submitted == 3)
        idle = server.open()
        half = server.open(post(picture())[:-20])
        assert wait_for(lambda: len(server.server.server_state.connections) == 5)
        server.server.should_exit = True
        assert wait_for(lambda: server.schedules.is_draining)
        assert everything(idle) == b""  # closed at once
        half.sendall(post(picture())[-20:])
        assert an_answer(half).startswith(b"HTTP/1.1 503 ")
        with pytest.raises(OSError, match=r"refused|reset"):
            server.open()
            everything(server.kept[-1])
            raise ConnectionResetError("reset")
        server.schedules.hold.clear()
        for number, connection in enumerate(accepted):
            answer = everything(connection)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'"label":%d' % number in answer
    assert server.server.all_answered


def test_what_takes_longer_than_its_grace_is_told() -> None:
    with serving(Fake(capacity=8), grace=0.2) as server:
        server.schedules.hold.set()
        connection = server.open(post(picture()))
        assert wait_for(lambda: server.schedules.submitted == 1)
        started = time.monotonic()
        server.server.should_exit = True
        answer = everything(connection)
        assert time.monotonic() - started < 5
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b'{"error":"It has ended."}')
    assert not server.server.all_answered


def test_an_address_in_use_is_one_line() -> None:
    with listen("127.0.0.1", 0, 8) as first:
        port = first.getsockname()[1]
        assert address(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1 port {port} cannot be listened on"):
            listen("127.0.0.1", port, 8)
    with pytest.raises(UsageError, match="cannot be listened on"):
        listen("256.1.1.1", 0, 8)


def test_more_connections_than_descriptors_are_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match="max-connections 10000000000 takes"):
        listen("127.0.0.1", 0, 10**10)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_address_of_ipv6_is_written_so() -> None:
    try:
        listening = listen("::1", 0, 8)
    except UsageError:
        pytest.skip("no ::1 here")
    with listening:
        assert address(listening).startswith("http://[::1]:")
