import functools
import http.server
import json
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from offramp.cli import main
from offramp.commands import DemoOptions, PredictOptions, demo, predict
from offramp.errors import OfframpError, UsageError
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.serve.web_runtime import FILES

PICTURES = os.environ.get("OFFRAMP_PICTURES")


@pytest.fixture(autouse=True)
def _quicker(operators_once: None) -> None:
    """Most tests here export."""


@pytest.fixture
def run(make_trained: Callable[..., str]) -> Path:
    folder = Path(make_trained())
    Policy((0.8, NOBODY, EVERYBODY)).save(folder / "policy.json")
    return folder


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder with files that are called like the runtime's."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    return folder


def test_the_folder_holds_the_page_and_all_it_asks_for(run: Path, runtime: Path, tmp_path: Path, capsys) -> None:
    (run / "images" / "1").mkdir(parents=True)  # named like a class
    write_png(torch.zeros(1, 4, 4, dtype=torch.uint8), str(run / "images" / "1" / "image.png"))
    assert main(["demo", str(run), "--out", str(tmp_path / "site"), "--runtime", str(runtime), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    site = tmp_path / "site"
    model = json.loads((site / "model.json").read_text())
    assert model["ladder"] == [{"rung": 1, "thresholds": [0.8, None, None], "promise": None, "risk": None}]
    assert model["exits"] == len(model["stages"]) == 3
    assert model["operations"][-1] == 1
    assert model["samples"] == [{"url": "samples/0.png", "label": 1}]
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    needed = {"index.html", "model.json", "samples/0.png", "runtime/LICENSE.txt"}
    assert files == needed | {one["file"] for one in model["stages"]} | {f"runtime/{name}" for name in FILES}
    assert said == {"written": str(site), "bytes": sum((site / name).stat().st_size for name in files), "samples": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dist", "run", "site"]  # nothing half-made


def test_a_folder_that_holds_something_stays_as_it_is(run: Path, runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        demo(DemoOptions(run, out=tmp_path / "site", runtime=runtime))
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["mine.txt"]


def test_a_policy_is_needed(make_trained: Callable[..., str], runtime: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no policy\.json"):
        demo(DemoOptions(make_trained(), out=tmp_path / "site", runtime=runtime))


def test_without_a_network_nothing_is_left(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(OfframpError, match=r"could not be downloaded.*--runtime"):
        demo(DemoOptions(run, out=tmp_path / "site"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def site(garments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a demo of garments on a static host."""
    folder = tmp_path_factory.mktemp("demo") / "site"
    try:
        demo(DemoOptions(garments, out=folder))
    except OfframpError as error:
        pytest.skip(str(error))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_labels_and_exits_are_those_of_the_engine(
    site: str, garments: Path, garment_images: list[Path], look_at: Callable
) -> None:
    """Of 50 test images, those among them that are resized too."""
    seen, exits = look_at(site), set()
    for expected in predict(PredictOptions(garments, garment_images)):
        assert seen.drop(Path(expected.file)) == (expected.class_name, expected.exit), expected
        exits.add(expected.exit)
    assert len(exits) >= 3
    assert seen.complaints == []


@pytest.mark.slow
def test_stages_behind_the_exit_are_not_run(site: str, garments: Path, garment_images, look_at: Callable) -> None:
    seen = look_at(site)
    for expected in predict(PredictOptions(garments, garment_images[:20])):
        seen.page.evaluate("performance.clearMeasures()")
        seen.drop(Path(expected.file))
        run = seen.page.evaluate("performance.getEntriesByType('measure').map(one => one.name)")
        assert run == [f"stage {k}" for k in range(1, expected.exit + 1)]
        states = [card.get_attribute("class").split()[0] for card in seen.page.locator("#exits > li").all()]
        assert states == ["ran"] * (expected.exit - 1) + ["left"] + ["skipped"] * (4 - expected.exit)
    assert seen.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(site: str, look_at: Callable, tmp_path: Path, width: int, scheme: str) -> None:
    """The pictures stay in the test's folder (`--basetemp`), or go where $OFFRAMP_PICTURES says, to be looked at."""
    seen = look_at(site, width, scheme)
    seen.page.locator("#samples button").nth(6).click()
    seen.page.locator("#spoken", has_text="Sample 7: ").wait_for(state="attached")
    seen.page.wait_for_timeout(400)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    seen.page.screenshot(path=Path(PICTURES or tmp_path) / f"demo-{width}-{scheme}.png", full_page=True)
    assert seen.complaints == []
