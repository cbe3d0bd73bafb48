"""Every page in headless Chromium, wide and narrow, light and dark: nothing overflows, no column is crushed.

The pictures stay in the test's folder (`--basetemp`), or go where $OFFRAMP_PICTURES says, to be looked at.
"""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tests.results import made_up

from offramp import shipped
from offramp.cli import main
from offramp.json_files import write
from offramp.policy import Policy
from offramp.show.verdict.page import verdict_page

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")]
WIDTHS = (1280, 390)
LEAST = 40  # pixels of a column of words: two letters have 20
MEASURE = """
<pre id="measured"></pre><script>
const words = cell => cell.innerText.trim().length > 8;
const cells = [...document.querySelectorAll("td, th")].filter(words);
const crushed = cells.filter(cell => cell.clientWidth < %d).map(cell => cell.innerText);
const root = document.documentElement;
document.getElementById("measured").innerText = JSON.stringify(
  {width: root.clientWidth, needed: root.scrollWidth, crushed: crushed});
</script>
"""


def chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    usual = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
    done = subprocess.run([CHROMIUM, *usual, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(page: Path, width: int) -> dict[str, object]:
    inner = page.parent / f"{page.stem}.measured.html"
    inner.write_text(page.read_text() + MEASURE % LEAST)
    outer = page.parent / f"{page.stem}.outer.html"
    copy = "document.body.dataset.found = this.contentDocument.getElementById('measured').innerText"
    outer.write_text(
        f'<body><iframe src="{inner.name}" style="border:0;width:{width}px;height:2000px" onload="{copy}"></iframe>'
    )
    dumped = chromium("--virtual-time-budget=5000", "--dump-dom", outer.as_uri())
    found = re.search(r'data-found="([^"]*)"', dumped)
    assert found is not None, dumped[:500]
    value = json.loads(html.unescape(found[1]))
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, script: Callable[[Path], ModuleType]) -> list[Path]:
    """A run's page with all that it can have, a comparison, an x-ray, a verdict, and the committed pages."""
    folder = tmp_path_factory.mktemp("pages")
    made = script(ROOT / "tests" / "commands" / "verdict" / "test_init.py")
    (folder / "verdict.html").write_text(verdict_page(made.made_up_verdict("yes"), "verdict"))
    small = "--data digits limit=60 --network auto exits=3 channels=4 growth=2 head_channels=8 --holdout 20 --epochs 2"
    for name in ("one", "other"):
        objective = "dynamic" if name == "one" else "cross-entropy"
        assert (
            main(["train", *small.split(), "--objective", objective, "--xray", "20", "--out", str(folder / name)]) == 0
        )
    runs = [str(folder / "one"), str(folder / "other")]
    assert main(["compare", *runs, "--out", str(folder / "compare.html")]) == 0
    assert main(["xray", runs[0]]) == 0
    run = folder / "run"
    shipped.copy("fashion-mnist", run)
    assert main(["certify", str(run), "--device", "cpu"]) == 0
    assert main(["evaluate", str(run), "--device", "cpu", "--train-limit", "0"]) == 0
    weights, policy = json.loads((run / "evaluation.json").read_text())["weights"], Policy.load(run / "policy.json")
    modes = [made_up.mode(name, (0.3, 0.6, 0.8, 1.0)) for name in ("1", "32", "stream")]
    conditions = dataclasses.replace(made_up.CONDITIONS, device="a made-up machine with a long name @ 2.10GHz")
    write(run / "bench.json", made_up.bench(policy, weights, *modes, conditions=conditions).to_json())
    assert main(["evaluate", str(run), "--device", "cpu", "--train-limit", "0"]) == 0
    committed = [shutil.copy(page, folder / page.name) for page in sorted((ROOT / "docs").rglob("*.html"))]
    mine = [run / "report.html", folder / "verdict.html", folder / "compare.html", folder / "one" / "xray.html"]
    return [*mine, *map(Path, committed)]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_no_column_is_crushed(pages: list[Path], width: int) -> None:
    for page in pages:
        found = measured(page, width)
        assert found["width"] == width, page
        assert found["needed"] <= width, f"{page.name} needs {found['needed']} of {width} pixels"  # type: ignore[operator]
        assert found["crushed"] == [], page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_are_taken(pages: list[Path], width: int, theme: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("OFFRAMP_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    scheme = f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"
    style = f"border:0;width:{width}px;height:5000px"  # a frame: a window is 500 pixels wide at least
    for page in pages:
        outer = page.parent / f"{page.stem}.outer.html"
        outer.write_text(f'<body style="margin:0"><iframe src="{page.name}" style="{style}">')
        picture = folder / f"{page.stem}-{width}-{theme}.png"
        chromium(scheme, f"--window-size={max(width, 500)},5000", f"--screenshot={picture}", outer.as_uri())
        assert picture.stat().st_size > 10_000
