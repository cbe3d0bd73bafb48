"""Every example of the README and the guides is executed, in the order it stands, in a folder of its own.

- A `python` block whose first line is `# NAME.py` is added to that file; any other is run.
- A line `$ ...` of a `console` block is run: `offramp` or `python`.
- An `offramp` line of an `sh` block (too long to run here) is parsed: its options exist and their values are allowed.
"""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from offramp.cli import main, parse

ROOT = Path(__file__).parents[2]
LONG = ("reproduce.md", "verdict.md")  # pages that train for half a minute between them, as tests of their commands do
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("lightning", "transformers")  # libraries that are no extra: their examples are run where they are installed
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def photos(folder: Path) -> None:
    """Somebody's own pictures, for the examples that train on a folder."""
    for label, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            image = torch.randint(0, 100, (3, 16, 16), dtype=torch.uint8)
            image[label] += 120
            write_png(image, str(folder / name / f"{number}.png"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Works in a new folder, as a user does whose modules lie there; in one process, for torch is slow to import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def run(words: list[str]) -> None:
    """A line of a console block."""
    if words[0] == "offramp":
        assert main(words[1:]) == 0, words
    else:
        assert words[0] == "python"
        runpy.run_path(words[1], run_name="__main__")


def library_of(text: str) -> str | None:
    return next((name for name in OTHERS if re.search(rf"^(import|from) {name}\b", text, re.MULTILINE)), None)


@pytest.mark.slow
@pytest.mark.parametrize("library", OTHERS)
def test_examples_with(library: str, folder: Path) -> None:
    """In a process of its own: such libraries change what is global, and their warnings are theirs."""
    pytest.importorskip(library)
    blocks = [text for kind, text in BLOCK.findall((ROOT / "docs" / "your-loop.md").read_text()) if kind == "python"]
    (folder / "plain.py").write_text(next(text for text in blocks if text.startswith("# plain.py")))
    (example,) = (text for text in blocks if library_of(text) == library)
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 90  # accuracy in per cent


@pytest.mark.usefixtures("undrawn", "operators_once")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page.name in LONG else (), id=page.name) for page in PAGES]
)
def test_examples_of(page: Path, folder: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    if any("photos" in text for _, text in blocks):
        photos(folder / "photos")
    for kind, text in blocks:
        named = re.match(r"# (\w+\.py)\n", text)
        if kind == "python" and named:
            with open(folder / named[1], "a") as file:
                file.write(text)
        elif kind == "python" and not library_of(text):
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
        elif kind == "console":
            for line in text.splitlines():
                if line.startswith("$ "):
                    run(shlex.split(line[2:], comments=True))
        elif kind == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("offramp "):
                    assert parse(shlex.split(line, comments=True)[1:])


def test_the_quickstart_is_asked_for_what_commands_know() -> None:
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    asked = [line.partition("/offramp ")[2].replace("$(QUICK)", "runs/x") for line in lines if "/offramp " in line]
    assert [words.split()[0] for words in asked] == ["train", "certify", "bench", "evaluate"]
    for words in asked:
        assert parse(shlex.split(words))


def test_there_are_examples() -> None:
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) >= 6


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("offramp")
    assert subprocess.run([command, "--version"], capture_output=True, check=True).stdout.startswith(b"offramp ")
