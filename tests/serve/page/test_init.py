"""The page on a server that answers as docs/serve.md says, made of the engine's own parts in a few lines."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from offramp.commands import PredictOptions, predict
from offramp.data import Inputs
from offramp.files import load
from offramp.policy import EVERYBODY, Policy
from offramp.serve.page import content_security_policy, page

PICTURES = os.environ.get("OFFRAMP_PICTURES")
LADDER = {0.005: 0.97, 0.01: 0.9, 0.02: 0.8, 0.05: 0.6}  # risks, and the threshold of each exit


class Server:
    """A fake: no queue, no limits, one request at a time."""

    def __init__(self, run: Path, folder: Path) -> None:
        network, inputs = load(run), Inputs.load(run / "input.json")
        policies = [Policy.load(run / "policy.json")]
        self.token: str | None = None
        self.refuses: tuple[int, str] | None = None
        self.asked: list[int] = []
        names, K = inputs.class_names, network.num_exits
        model = {"name": "fake", "fingerprint": "0" * 64, "class_names": names, "exits": K, "measure": "softmax"}
        model |= {"image_shape": inputs.image_shape, "operations": [0.16, 0.34, 0.67, 1.0], "accuracies": None}
        model |= {"data": "garments", "certificate": None}
        policies += [Policy((threshold,) * 3 + (EVERYBODY,)) for threshold in LADDER.values()]
        risks = [None, *LADDER]
        model["ladder"] = [
            {"rung": rung, "thresholds": policy.thresholds, "promise": f"At most {risk}.", "risk": risk}
            for rung, (policy, risk) in enumerate(zip(policies, risks, strict=True), 1)
        ]
        images = sorted((run / "images").iterdir())

        def steps(content: bytes, rung: int) -> Iterator[tuple[str, dict[str, object]]]:
            (folder / "asked.png").write_bytes(content)
            logits_K1C = network(inputs.read(folder / "asked.png")[None])
            policy = policies[rung - 1]
            for k, logits_1C in enumerate(logits_K1C):
                log_probs_1N = policy.log_probs(k, logits_1C, len(names))
                leaves = bool(policy.leave(k, log_probs_1N)[0])
                probability_N, label_N = log_probs_1N[0].exp().sort(descending=True)
                said = {
                    "label": int(label_N[0]),
                    "class_name": names[label_N[0]],
                    "confidence": float(probability_N[0]),
                }
                said |= {"exit": k + 1, "operations": model["operations"][k]}
                top = [
                    {"label": int(label), "class_name": names[label], "probability": float(value)}
                    for label, value in zip(label_N[:5], probability_N[:5], strict=True)
                ]
                threshold = None if k == K - 1 else policy.thresholds[k]
                yield "exit", {**said, "threshold": threshold, "top": top, "leaves": leaves}
                if leaves:
                    times = {"in_time": True, "queued_ms": 0.1, "computed_ms": 1.5 * k + 1}
                    yield "answer", {**said, **times, "rung": rung, "promise": None, "fingerprint": "0" * 64}
                    return

        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, content: bytes, kind: str, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", content_security_policy())
                self.end_headers()
                self.wfile.write(content)

            def allowed(self) -> bool:
                if server.token in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
                    return True
                self.answer(json.dumps({"error": "No such token."}).encode(), "application/json", 401)
                return False

            def do_GET(self) -> None:
                if self.path == "/":
                    self.answer(page().encode(), "text/html; charset=utf-8")
                elif not self.allowed():
                    return
                elif self.path == "/v1/model":
                    self.answer(json.dumps(model).encode(), "application/json")
                elif self.path == "/v1/samples":
                    urls = [{"url": f"/v1/samples/{i}", "label": None if i else 0} for i in range(len(images))]
                    self.answer(json.dumps({"samples": urls}).encode(), "application/json")
                else:
                    self.answer(images[int(self.path.rpartition("/")[2])].read_bytes(), "image/png")

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.allowed():
                    return
                if server.refuses is not None:
                    status, error = server.refuses
                    self.answer(json.dumps({"error": error}).encode(), "application/json", status)
                    return
                assert self.headers["Accept"] == "text/event-stream"
                rung = int(self.path.partition("rung=")[2])
                server.asked.append(rung)
                with torch.no_grad():
                    events = "".join(
                        f"event: {name}\r\ndata: {json.dumps(d)}\r\n\r\n" for name, d in steps(content, rung)
                    )
                self.answer(events.encode(), "text/event-stream")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture(scope="module")
def served(garments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(garments, tmp_path_factory.mktemp("asked"))
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture(autouse=True)
def _as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "served" in request.fixturenames:
        server = request.getfixturevalue("served")
        server.token = server.refuses = None


@pytest.mark.parametrize("engine", ["server", "local"])
def test_its_policy_allows_its_own_script_and_style_and_no_other(engine: str) -> None:
    document, policy = page(engine), content_security_policy(engine)
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy
    assert " style=" not in document
    assert not re.search(r" on\w+=", document)
    assert ("http-equiv" in document) == (engine == "local")  # a static host sends no header


def test_labels_and_exits_are_those_of_the_engine(
    served: Server, garments: Path, garment_images: list[Path], look_at: Callable
) -> None:
    seen = look_at(served.address)
    for expected in predict(PredictOptions(garments, garment_images[:3])):
        assert seen.drop(Path(expected.file)) == (expected.class_name, expected.exit)
    assert seen.complaints == []


@pytest.mark.slow
def test_of_50_test_images(served: Server, garments: Path, garment_images: list[Path], look_at: Callable) -> None:
    seen, exits = look_at(served.address), set()
    for expected in predict(PredictOptions(garments, garment_images)):
        assert seen.drop(Path(expected.file)) == (expected.class_name, expected.exit)
        exits.add(expected.exit)
    assert len(exits) >= 3
    assert seen.complaints == []


def test_the_slider_moves_along_the_ladder(served: Server, garment_images: list[Path], look_at: Callable) -> None:
    seen = look_at(served.address)
    seen.drop(garment_images[1])
    before = len(served.asked)
    seen.page.focus("#rung")
    seen.page.keyboard.press("End")
    seen.page.locator("#risk", has_text="at most 5 %").wait_for()
    assert "At most 0.05" in seen.page.inner_text("#promise")
    assert "At most 0.05" in seen.page.get_attribute("#rung", "aria-valuetext")
    seen.page.locator("#exits:not([aria-busy])").wait_for()
    seen.page.wait_for_timeout(500)
    assert served.asked[before:] == [5]
    assert seen.complaints == []


def test_one_can_draw_with_a_pointer_and_with_keys(served: Server, look_at: Callable) -> None:
    seen = look_at(served.address)
    box = seen.page.locator("#picture").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    seen.page.mouse.move(x, y)
    seen.page.mouse.down()
    seen.page.mouse.move(x, y + box["height"] / 2, steps=4)
    seen.page.mouse.up()
    seen.page.locator("#spoken", has_text="Your drawing: ").wait_for(state="attached")
    one = seen.page.evaluate("document.querySelector('#picture').toDataURL()")
    seen.page.focus("#picture")
    for key in ("Space", *["ArrowRight"] * 5, "Space"):
        seen.page.keyboard.press(key)
    seen.page.locator("#exits:not([aria-busy])").wait_for()
    assert seen.page.evaluate("document.querySelector('#picture').toDataURL()") != one
    assert seen.complaints == []


def test_what_a_server_refuses_is_shown(served: Server, garment_images: list[Path], look_at: Callable) -> None:
    served.refuses = (429, "There are too many images waiting.")
    seen = look_at(served.address)
    seen.page.locator("#samples button").first.click()
    seen.page.locator("[role=alert]", has_text="There are too many images waiting.").wait_for()
    assert [text for text in seen.complaints if "429" not in text] == []  # Chromium itself says that much
    served.refuses = None
    seen.drop(garment_images[0])
    assert seen.page.locator("[role=alert]").is_hidden()


def test_the_token_is_asked_for_once(served: Server, look_at: Callable, chromium) -> None:
    served.token = "a secret"
    tab = chromium.new_page()
    tab.goto(served.address)
    tab.locator("#token-value").fill("a secret")
    tab.keyboard.press("Enter")
    tab.locator("#samples button").first.click()
    tab.locator("#spoken", has_text="Sample 1: ").wait_for(state="attached")
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(
    served: Server, garment_images, look_at: Callable, tmp_path, width: int, scheme: str
) -> None:
    """The pictures stay in the test's folder (`--basetemp`), or go where $OFFRAMP_PICTURES says, to be looked at."""
    seen = look_at(served.address, width, scheme)
    seen.drop(garment_images[5])
    seen.page.wait_for_timeout(400)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    folder = Path(PICTURES or tmp_path)
    seen.page.screenshot(path=folder / f"served-{width}-{scheme}.png", full_page=True)
