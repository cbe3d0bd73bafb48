"""Every example of the README and the guides is executed, in the order it stands, in a folder of its own.

- A `python` block whose first line is `# NAME.py` is added to that file; any other is run.
- A line `$ ...` of a `console` block is run by the shell.
- An `offramp` line of an `sh` block (too long to run here) is parsed: its options exist and their values are allowed.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from offramp.cli import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def photos(folder: Path) -> None:
    """Somebody's own pictures, for the examples that train on a folder."""
    for label, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            image = torch.randint(0, 100, (3, 16, 16), dtype=torch.uint8)
            image[label] += 120
            write_png(image, str(folder / name / f"{number}.png"))


def run(command: list[str] | str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of(page: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    if any("photos" in text for _, text in blocks):
        photos(tmp_path / "photos")
    for kind, text in blocks:
        named = re.match(r"# (\w+\.py)\n", text)
        if kind == "python" and named:
            with open(tmp_path / named[1], "a") as file:
                file.write(text)
        elif kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        elif kind == "console":
            for line in text.splitlines():
                if line.startswith("$ "):
                    run(line[2:], tmp_path)
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
