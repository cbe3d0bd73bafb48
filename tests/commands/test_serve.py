"""`offramp serve` as a process of its own, on a network that ships: the whole way, with signals."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from offramp.commands import PredictOptions, ServeOptions, predict
from offramp.commands.example import ExampleOptions
from offramp.commands.serve import TOKEN, _token
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.policy import EVERYBODY, Policy

IMAGE = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *_, **__: None)
        ExampleOptions("fashion-mnist", out=folder).main()
    Policy((0.99, 0.9, 0.9, EVERYBODY)).save(folder / "policy.json")
    return folder


class Process:
    """A server, and what it printed once it was ready."""

    def __init__(self, run: Path, *options: str) -> None:
        command = [sys.executable, "-m", "offramp", "serve", str(run), "--port", "0", "--json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self.port = int(self.ready["address"].rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Any = IMAGE) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Process]:
    process = Process(run, "--backend", "torch", "--threads", "1", "--within-ms", "0")
    yield process
    process.end(signal.SIGKILL)


def test_answers_are_those_of_predict(run: Path, served: Process) -> None:
    assert served.ready["rungs"] == 1
    expected = list(predict(PredictOptions(run, (run / "images",), threads=1)))
    assert len({one.exit for one in expected}) > 1
    for one in expected:
        status, answer = served.ask("POST", "/v1/predict", Path(one.file).read_bytes())
        assert status == 200
        (found,) = answer["predictions"]
        assert (found["label"], found["class_name"], found["exit"]) == (one.label, one.class_name, one.exit)
        assert found["confidence"] == pytest.approx(one.confidence, abs=1e-4)
        assert found["fingerprint"] == served.ready["fingerprint"]


def test_the_card_is_the_runs(run: Path, served: Process) -> None:
    _, model = served.ask("GET", "/v1/model")
    exits = json.loads(RunFolder(run).evaluation.read_text())["exits"]
    assert model["accuracies"] == [one["top1"] for one in exits]
    assert model["ladder"][0]["thresholds"] == [0.99, 0.9, 0.9, None]
    _, samples = served.ask("GET", "/v1/samples")
    assert [one["label"] for one in samples["samples"]] == list(range(10))


def test_then_signals(run: Path, served: Process) -> None:
    """SIGHUP opens the run anew under load, and stays where that cannot be; SIGTERM answers what was accepted."""
    image = (run / "images" / "Bag-18.png").read_bytes()
    statuses: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            statuses.append(served.ask("POST", "/v1/predict", image)[0])

    thread = threading.Thread(target=load)
    thread.start()
    try:
        Policy((0.5, 0.5, 0.5, EVERYBODY)).save(run / "policy.json")
        os.kill(served.ready["pid"], signal.SIGHUP)
        until(lambda: served.ask("GET", "/v1/model")[1]["ladder"][0]["thresholds"][0] == 0.5)
        (run / "policy.json").write_text("{")
        status, answer = served.ask("POST", "/v1/reload", b"")
        assert (status, "What was served is served on" in answer["error"]) == (422, True)
        assert served.ask("GET", "/v1/model")[1]["ladder"][0]["thresholds"][0] == 0.5
    finally:
        stop.set()
        thread.join()
    assert set(statuses) == {200}
    status, errors = served.end()
    assert status == 0
    assert "Loaded anew" in errors
    assert "Traceback" not in errors


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    pause = threading.Event()
    for _ in range(round(seconds / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("It did not happen in time.")


class TestToken:
    def options(self, **more: Any) -> ServeOptions:
        return ServeOptions("run", **more)

    def test_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(TOKEN, "of-the-environment-which-is-second")
        (tmp_path / "token").write_text("of-a-file-of-its-own\n")
        assert _token(self.options(token_file=tmp_path / "token")) == "of-a-file-of-its-own"

    def test_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(TOKEN, "of-the-environment")
        assert _token(self.options()) == "of-the-environment"
        monkeypatch.delenv(TOKEN)
        assert _token(self.options()) is None

    @pytest.mark.parametrize(
        "content", ["", "short", "with a space in between", "ümlaut" * 5, "two-lines-of\na-token-in-a-file"]
    )
    def test_one_that_is_none_is_refused_and_not_shown(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(content)
        with pytest.raises(UsageError, match="token") as caught:
            _token(self.options(token_file=tmp_path / "token"))
        assert not content or content not in str(caught.value)

    def test_no_option_takes_it(self) -> None:
        """Every user of a machine sees the command lines of all."""
        assert "token" not in ServeOptions.__dataclass_fields__


@pytest.mark.parametrize(
    "options",
    [{"port": -1}, {"port": 70000}, {"max_waiting": 0}, {"grace": -1}, {"audit": 2}, {"max_body_mb": 0}, {"decoders": 0}]
    + [{"audit_level": 1}, {"max_connections": 0}, {"request_seconds": float("inf")}, {"max_megapixels": float("nan")}],
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServeOptions("run", **options)
