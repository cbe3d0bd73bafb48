"""The application on a real Ray Serve of this machine, with two replicas, one of which is killed under load."""

import http.client
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from offramp import shipped
from offramp.errors import UsageError
from offramp.serve.on_ray import application

REQUESTS, AT_ONCE = 600, 16
PATIENCE = 60  # seconds until a request counts as lost


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def replicas() -> list[int]:
    """Process ids of the replicas that this session's Ray has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, status = (entry / "cmdline").read_bytes(), (entry / "status").read_text()
            except OSError:
                continue  # it has ended
            if name.startswith(b"ray::ServeReplica:") and b"offramp" in name and f"\nUid:\t{os.getuid()}\t" in status:
                found.append(int(entry.name))
    return found


def start(ray) -> None:
    """Ray gives itself 30 s to start, which a busy machine may not have."""
    for attempt in range(3):
        try:
            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2 or "timed out during startup" not in str(error):
                raise


def ask(port: int, body: bytes, method: str = "POST", path: str = "/v1/predict") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextmanager
def serving(run: Path, **settings: Any) -> Iterator[tuple[int, set[int]]]:
    """The digits that ship, on a Ray of its own: the port, and the replicas of others."""
    ray, serve = pytest.importorskip("ray"), pytest.importorskip("ray.serve")
    port = free_port()
    shipped.copy("digits", run)
    before = set(replicas())
    start(ray)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(run, within_ms=None, **settings), name="test")
        yield port, before
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_of_a_replica_killed_under_load_no_accepted_request_is_lost(tmp_path: Path) -> None:
    """Each gets an answer or a status that says that there is none; asked once more, all are answered, and rightly."""
    run = tmp_path / "digits"
    with serving(run, replicas=2) as (port, before):
        images = [path.read_bytes() for path in sorted((run / "images").glob("*.png"))]
        expected = [json.loads(ask(port, image)[1])["predictions"][0]["label"] for image in images]
        started, told, kinds = Counter(), Counter(), Counter()

        def answered(number: int) -> bool:
            image = number % len(images)
            for _ in range(20):
                started["asked"] += 1
                status, content = ask(port, images[image])
                kinds[status] += 1
                if status == 200:
                    return bool(json.loads(content)["predictions"][0]["label"] == expected[image])
                told[status] += 1
                time.sleep(0.2)
            return False

        with ThreadPoolExecutor(AT_ONCE) as clients:
            outcomes = [clients.submit(answered, number) for number in range(REQUESTS)]
            while started["asked"] < REQUESTS // 3:
                time.sleep(0.01)
            (victim, _) = sorted(set(replicas()) - before)
            os.kill(victim, signal.SIGKILL)
            assert all(outcome.result() for outcome in outcomes)
        print(f"{dict(kinds)} of {started['asked']} requests")
        assert all(status >= 500 for status in told)  # and none is told that the request was wrong
        assert sum(told.values()) <= 3 * AT_ONCE  # those under way there, not those that came after
        limit = time.monotonic() + PATIENCE
        while len(alive := set(replicas()) - before - {victim}) < 2 and time.monotonic() < limit:
            time.sleep(0.2)
        assert len(alive) == 2  # another has taken its place
        # Of several replicas none is opened anew alone.
        assert ask(port, b"", path="/v1/reload")[0] == 404
        assert json.loads(ask(port, b"", "GET", "/v1/model")[1])["exits"] > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_more_requests_than_one_replica_is_to_have_bring_another(tmp_path: Path) -> None:
    """Ray looks for half a minute before it believes in them."""
    run = tmp_path / "digits"
    with serving(run, replicas=1, most=2, waiting=1) as (port, before):
        (image, *_) = (path.read_bytes() for path in sorted((run / "images").glob("*.png")))
        limit = time.monotonic() + 3 * PATIENCE

        def is_enough() -> bool:
            return len(set(replicas()) - before) == 2 or time.monotonic() > limit

        def asked(_: int) -> set[int]:
            found = set()
            while not is_enough():
                found.add(ask(port, image)[0])
            return found

        assert len(set(replicas()) - before) == 1
        with ThreadPoolExecutor(4) as clients:
            statuses = set().union(*clients.map(asked, range(4)))
        assert len(set(replicas()) - before) == 2
        assert statuses == {200}


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"replicas": 3, "most": 2}, {"waiting": 300}, {"threads": 0}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    pytest.importorskip("ray.serve")
    with pytest.raises(UsageError, match=r"must be|not below"):
        application("run", **wrong)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'offramp\[serve,ray-serve\]'"):
        application("run")
