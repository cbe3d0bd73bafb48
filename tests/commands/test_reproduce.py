import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.cli import main

TINY = Path(__file__).parents[1] / "paper" / "tiny.py"
METHOD = """
from dataclasses import dataclass
from torch.nn import functional as F
from offramp.objectives import Objective, Terms

@dataclass(frozen=True)
class Focal(Objective):
    power: float = 2.0

    def terms(self, logits_KBC, targets_B, *, progress=0.0):
        K, B, C = logits_KBC.shape
        ce_KB = F.cross_entropy(logits_KBC.flatten(0, 1), targets_B.repeat(K), reduction="none").view(K, B)
        return Terms((1 - (-ce_KB).exp()) ** self.power * ce_KB, {})
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a scale of one's own in it: `--scale tiny:SCALE`."""
    shutil.copy(TINY, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what stands there is what the command wrote
    yield tmp_path
    for name in ("tiny", "mine"):  # another test has others of that name
        sys.modules.pop(name, None)


def test_the_list_of_everything(here: Path, capsys) -> None:
    """What the issue asks to see first; nothing is written."""
    assert main(["reproduce", "all", "--scale", "pocket", "--seeds", "1", "--dry-run", "--rate", "5e9"]) == 0
    said = capsys.readouterr().out
    for name in (*(f"table{n}" for n in range(1, 9)), "figure3", "figure4", "league", "league-imagenet"):
        assert re.search(rf"^ *{name} .* (min|h|days) *$", said, re.MULTILINE), name
    assert re.search(r"^ *all .* 88 +88 ", said, re.MULTILINE)
    assert "estimates" in said
    beside = "not in the paper: WPN, its own recipe; WPN, twice the batch"
    assert f"\ntable6: RANet; WPN; Ours (Power-sqrt); + Dynamic training; {beside}.\n" in said
    assert re.search(
        r"^league: .*; damping, λ rising with depth; .*; CGT, soft gate, its own recipe", said, re.MULTILINE
    )
    assert os.listdir(here) == ["tiny.py"]


def without_clocks(page: str) -> str:
    return re.sub(r"[\d.]+ (s|min|h)(\s\(×[\d.]+\))?", "TIME", page)


@pytest.mark.slow  # quickly, but for its second time: docs/reproduce.md in tests/docs
def test_a_study_with_a_method_of_ones_own(here: Path, capsys) -> None:
    """One file is all that a new method takes; `--only` twice is both. Done once, a second time does nothing."""
    (here / "mine.py").write_text(METHOD)
    command = ["reproduce", "table1", "--scale", "tiny:SCALE", "--only", "mine:Focal power=1.0", "--threads", "1"]
    command += ["--also", "mine:Focal", "power=1.0", "--jobs", "2"]
    assert main([*command, "--seeds", "1"]) == 0
    first = sorted((here / "reproduce" / "manifests").iterdir())
    assert len(first) == 1
    page = (here / "reproduce" / "table1-tiny.md").read_text()
    assert re.search(r"^\| \[mine:Focal power=1.0\]\(#runs-\w+\) \| .* \| 1 \| ", page, re.MULTILINE)
    before = {path: path.stat().st_mtime_ns for path in first}
    assert main([*command, "--seeds", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in first} == before
    assert (here / "reproduce" / "table1-tiny.md").read_text() == page
    capsys.readouterr()
    assert main([*command, "--only", "MSDNet", "--seeds", "2", "--dry-run"]) == 0
    assert re.search(r"^ *table1 .* 2 +4 +3 ", capsys.readouterr().out, re.MULTILINE)


def test_wrong_use_is_one_line(here: Path, capsys) -> None:
    for words, said in (
        (["tabel1"], "There is no table or figure 'tabel1'. Did you mean table1"),
        ([], "Say what to reproduce"),
        (["table1", "--scale", "poket"], "Unknown scale 'poket'"),
        (["table1", "--seeds", "0"], "seeds must be a whole number of at least 1, not 0."),
        (["table1", "--threads", "-1"], "threads must be a whole number of at least 1, not -1."),
        (["table1", "--rate", "-1"], "rate must be a number above 0"),
        (["table1", "--only", "MSDnet"], "No row is called 'MSDnet'. Did you mean MSDNet"),
        (["table1", "--known", "nowhere"], "There is no folder nowhere"),
        (["table4", "--scale", "tiny:SCALE"], "has no setting 'cifar10'"),
    ):
        assert main(["reproduce", *words, "--page-only"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_without_ray_nothing_is_begun(here: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """No announcement of runs, no empty page."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["reproduce", "table1", "--scale", "tiny:SCALE", "--on", "ray"]) == 2
    assert capsys.readouterr().err == "offramp: Ray is not installed: pip install 'offramp[ray]'.\n"
    assert os.listdir(here) == ["tiny.py"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_it_says_so_and_shows_what_is_there(here: Path, number: signal.Signals, signalled, capsys) -> None:
    """Runs save and leave; the page is written."""
    text = (here / "tiny.py").read_text().replace("epochs=1", "epochs=1_000")  # of more it would be compiled
    (here / "tiny.py").write_text(text)
    command = ["reproduce", "table1", "--scale", "tiny:SCALE", "--seeds", "1"]
    command += ["--only", "MSDNet", "--threads", "1", "--rate", "1e9"]
    with signalled(number, lambda: list(here.glob("reproduce/runs/*/metrics.jsonl"))):
        if number == signal.SIGINT:
            assert main(command) == 130
        else:
            with pytest.raises(SystemExit) as stopped:
                main(command)
            assert stopped.value.code == 143
    said, errors = capsys.readouterr()
    assert "Stopped; the same command continues." in errors.splitlines()
    assert said.split() == ["reproduce/table1-tiny.html", "reproduce/table1-tiny.md"]
    assert "0 of 1 runs are done" in (here / said.split()[1]).read_text()
    assert list(here.glob("reproduce/runs/*/checkpoints/*"))


def test_the_committed_pages_can_be_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """By the commands that docs/results/README.md names, elsewhere, with all runs that the committed ones have."""
    root = Path(__file__).parents[2]
    text = (root / "docs/results/README.md").read_text()
    commands = re.findall(r"`offramp (reproduce [^`]*) --out docs/results`", text)
    monkeypatch.chdir(root)
    for command in commands:
        assert main([*shlex.split(command), "--out", str(tmp_path)]) == 0
    pages = {path.name: path.read_text() for path in map(Path, capsys.readouterr().out.split()) if path.suffix == ".md"}
    assert pages.keys() == {path.name for path in (root / "docs/results").glob("*.md")} - {"README.md"}
    for name, page in pages.items():
        said = re.search(r"\d+ of \d+ runs are done; seeds? [\d, ]+\.", (root / "docs/results" / name).read_text())
        assert said is not None
        assert said[0] in page
        assert " 0 of " not in page
    league, longer, tables = (
        pages[f"{name}.md"] for name in ("league-pocket", "league-pocket-x10", "table1-table5-table8-pocket")
    )
    assert league.startswith("# League, scale pocket\n")
    assert longer.startswith("# League, some rows, scale pocket-x10\n")
    assert "3 of 3 runs are done; seed 0." in longer
    assert "## Verdicts" not in league + longer
    assert "**What the paper says.**" in tables


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_page(here: Path) -> None:
    """`kill -9` up to ten times on the way, at moments that the clock chooses; only what clocks say may differ.

    Every other time its runs are killed as well, as when the machine goes down; else they are orphans that save.
    """
    text = (here / "tiny.py").read_text().replace("epochs=1", "epochs=40")
    (here / "tiny.py").write_text(text)
    command = [sys.executable, "-m", "offramp", "reproduce", "table1", "--scale", "tiny:SCALE", "--seeds", "2"]
    command += ["--only", "MSDNet", "+ Dynamic", "--jobs", "2", "--threads", "1", "--rate", "1e9", "--out"]
    subprocess.run([*command, "calm"], check=True)
    kills = 0
    for number in range(10):
        process = subprocess.Popen([*command, "killed"])
        try:
            process.wait(timeout=6 + 2 * number)
        except subprocess.TimeoutExpired:
            runs = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(process.pid, signal.SIGKILL)
            for run in runs if number % 2 else ():
                os.kill(int(run), signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.1)
    subprocess.run([*command, "killed"], check=True)
    assert kills > 0
    for out in ("calm", "killed"):  # what else the machine did is the clocks' matter, too
        for path in (here / out / "manifests").iterdir():
            values = json.loads(path.read_text())
            values.pop("load", None)
            path.write_text(json.dumps(values))
        subprocess.run([*command, out, "--page-only"], check=True)
    for ending in ("html", "md"):
        calm, killed = ((here / out / f"table1-tiny.{ending}").read_text() for out in ("calm", "killed"))
        assert without_clocks(calm) == without_clocks(killed)
    assert "4 of 4 runs are done" in calm
