"""Ten times what it can answer, with faults and reloads, for ten minutes: memory stays, and every request is answered.

`OFFRAMP_SOAK=30 python -m pytest -s -m slow tests/serve/test_soak.py` tries it for 30 seconds.
"""

import collections
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from tests.commands.test_serve import Process, run  # noqa: F401 - a fixture
from tests.serve.conftest import multipart, picture, post, wait_for

from offramp.policy import EVERYBODY, Policy

SECONDS = float(os.environ.get("OFFRAMP_SOAK", "600"))
CLIENTS, CONNECTIONS, RELOAD = 8, 300, 15  # the last in seconds
LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"
MB, POOLS = 2**20, 8  # threads that decode and open runs, made when they are needed


class Held(NamedTuple):
    """What a process holds."""

    resident: int
    descriptors: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> "Held":
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        folder = Path(f"/proc/{pid}")
        resident = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(resident, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))


def client(port: int, seed: int, until: float, seen: collections.Counter[object], wrong: list[str]) -> None:
    """Asks as fast as it is answered, and now and then does what no client should."""
    numbers = random.Random(seed)
    large = picture(size=(1200, 900), kind="JPEG")
    while time.monotonic() < until:
        fault = numbers.random()
        try:
            if fault < 0.1:  # hang up: before, during, after the request
                content = post(picture())
                with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
                    one.sendall(content[: numbers.randrange(len(content) + 1)])
                    time.sleep(numbers.random() / 20)
                continue
            if fault < 0.15:  # nonsense
                with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
                    one.sendall(numbers.randbytes(200))
                    one.recv(1000)
                continue
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
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


def command(port: int, folder: Path, connections: int, rate: float, seconds: float) -> list[str]:
    """Offers load and writes what became of it to `seen.npz`."""
    words = [str(LOAD), f"127.0.0.1:{port}", "--bodies", str(folder / "bodies"), "--out", str(folder / "seen.npz")]
    return [sys.executable, *words, "--connections", str(connections), "--then", str(rate), str(seconds)]


@pytest.mark.slow
def test_overload_faults_and_reloads(run: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "bodies").write_bytes(msgspec.msgpack.encode([picture(number, (28, 28)) for number in range(3)]))
    seen: collections.Counter[object] = collections.Counter()
    wrong: list[str] = []
    server = Process(run, "--audit", "0.05", "--request-seconds", "5", "--max-connections", "400")
    pid = server.process.pid
    try:
        subprocess.run(command(server.port, tmp_path, 16, 1e8, 3000 / 1e8), check=True)  # as many as it can answer
        with np.load(tmp_path / "seen.npz") as found:
            capacity = len(found["done"]) / np.nanmax(found["done"])
        for warm in range(2):  # what is made once and kept
            client(server.port, warm, time.monotonic() + 2, collections.Counter(), wrong)
        assert wait_for(lambda: Held.by(pid).descriptors < 60, 20)
        before = most = Held.by(pid)
        until = time.monotonic() + SECONDS
        clients = [
            threading.Thread(target=client, args=(server.port, seed, until, seen, wrong)) for seed in range(CLIENTS)
        ]
        load = subprocess.Popen(command(server.port, tmp_path, CONNECTIONS, 10 * capacity, SECONDS))
        for one in clients:
            one.start()
        reloads, last = 0, time.monotonic()
        while load.poll() is None or any(one.is_alive() for one in clients):
            assert server.process.poll() is None, server.end()
            most = Held(*map(max, most, Held.by(pid)))
            if time.monotonic() > last + RELOAD:
                Policy((0.99, 0.9, 0.9 - 0.1 * (reloads % 2), EVERYBODY)).save(run / "policy.json")
                os.kill(pid, signal.SIGHUP)
                reloads, last = reloads + 1, time.monotonic()
            time.sleep(0.2)
        assert load.returncode == 0
        with np.load(tmp_path / "seen.npz") as found:
            kinds = np.bincount(found["kind"], minlength=5).tolist()
        assert wait_for(lambda: Held.by(pid).descriptors <= before.descriptors, 60), (Held.by(pid), before)
        after = Held.by(pid)
        status, answer = server.ask("POST", "/v1/predict", picture())
        assert (status, answer["predictions"][0]["in_time"]) == (200, True)
    finally:
        code, errors = server.end()
    print(
        f"\n{SECONDS:g} s at ten times {capacity:.0f} images a second, {reloads} reloads: {kinds} answered, refused, "
        f"failed, lost, not sent; with faults {dict(seen)}; resident {before.resident / MB:.0f} MB before, "
        f"{most.resident / MB:.0f} at most, {after.resident / MB:.0f} after; descriptors and threads {before[1:]}, "
        f"{most[1:]}, {after[1:]}"
    )
    assert code == 0, errors
    assert "Traceback" not in errors
    assert not wrong[:5]
    assert kinds[2:4] == [0, 0]  # nothing without an answer
    assert min(kinds[:2]) > SECONDS
    assert seen[200] > 0
    assert after.threads <= before.threads + POOLS
    assert after.resident < before.resident + 200 * MB
    assert most.resident < before.resident + 500 * MB
