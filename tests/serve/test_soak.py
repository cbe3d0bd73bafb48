"""Far more than it can answer, with faults, for ten minutes: memory stays, and every request is answered or told why.

`OFFRAMP_SOAK=20 python -m pytest -m slow tests/serve/test_soak.py` tries it for 20 seconds.
"""

import collections
import http.client
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest
from tests.serve.conftest import Fake, Serving, multipart, picture, post, quick, serving, wait_for

SECONDS = float(os.environ.get("OFFRAMP_SOAK", "600"))
CLIENTS = 24
PER_SECOND = 100  # that can be answered: the clients ask for far more


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def client(server: Serving, seed: int, until: float, seen: collections.Counter[object], wrong: list[str]) -> None:
    """Asks as fast as it is answered, and now and then does what no client should."""
    numbers = random.Random(seed)
    large = picture(size=(1200, 900), kind="JPEG")
    while time.monotonic() < until:
        fault = numbers.random()
        try:
            if fault < 0.1:  # hang up: before, during, after the request
                content = post(picture())
                one = socket.create_connection(("127.0.0.1", server.port), timeout=5)
                one.sendall(content[: numbers.randrange(len(content) + 1)])
                time.sleep(numbers.random() / 20)
                one.close()
                continue
            if fault < 0.15:  # nonsense
                with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one:
                    one.sendall(numbers.randbytes(200))
                    one.recv(1000)
                continue
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            kind, body = "image/png", picture(numbers.randrange(3))
            if fault < 0.2:
                body = large
            elif fault < 0.25:
                kind, body = "multipart/form-data; boundary=edge", multipart(*[picture()] * 20)
            elif fault < 0.3:
                body = bytes(numbers.randrange(200_000))
            connection.request("POST", "/v1/predict", body, {"Content-Type": kind})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            seen[type(error).__name__] += 1
            if isinstance(error, TimeoutError):
                wrong.append("a request was not answered")
            continue
        seen[answer.status] += 1
        if answer.status not in (200, 415, 429, 503) or not isinstance(json.loads(content), dict):
            wrong.append(f"{answer.status}: {content[:200]!r}")


@pytest.mark.slow
def test_overload_and_faults() -> None:
    seen: collections.Counter[object] = collections.Counter()
    wrong: list[str] = []
    before = descriptors(), threading.active_count()
    with serving(
        Fake(capacity=32, seconds=1 / PER_SECOND), quick(max_connections=CLIENTS + 8, body_seconds=5)
    ) as server:
        for warm in range(2):  # what is made once and kept
            client(server, warm, time.monotonic() + 2, collections.Counter(), wrong)
        started = resident()
        until = time.monotonic() + SECONDS
        clients = [threading.Thread(target=client, args=(server, seed, until, seen, wrong)) for seed in range(CLIENTS)]
        for one in clients:
            one.start()
        most = 0
        while any(one.is_alive() for one in clients):
            most = max(most, resident())
            assert len(server.server.server_state.connections) <= CLIENTS + 8
            time.sleep(0.2)
        assert wait_for(lambda: not server.schedules.waiting, 10)
        assert wait_for(lambda: server.app._budget.held == server.app._preparing == 0, 10)
        assert server.predict(picture())[0] == 200
    print(f"{SECONDS:g} s: {dict(seen)}; {(most - started) / 2**20:.0f} MB more at most")
    assert not wrong[:5]
    assert seen[200] > SECONDS
    assert seen[429] > seen[200] / 10
    assert most - started < 200 * 2**20
    assert wait_for(lambda: (descriptors(), threading.active_count()) == before)
