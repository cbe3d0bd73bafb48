"""`make torture`: its table and its exit status."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).with_name("torture.py")


@pytest.mark.slow  # half a minute of processes
def test_a_share_of_one_section() -> None:
    command = [sys.executable, str(SCRIPT), "--share", "0.1", "--only", "flipped bits: policy.json", "--only", "bombs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in done.stdout.splitlines() if line[:1] == "|"}
    assert [word.strip() for word in rows["flipped bits"]] == ["10", "10", "0", "0 of 0", ""]
    assert [word.strip() for word in rows["bombs"]] == ["3", "3", "0", "7 of 7", ""]


@pytest.mark.parametrize(
    ("failure", "shown", "status"),
    [("", "canary", 0), ("loaded other tensors", "canary", 1), ("", "", 1)],
    ids=["all held", "a case failed", "a control did not fail"],
)
def test_the_exit_status(
    script: Callable[[Path], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: str,
    shown: str,
    status: int,
) -> None:
    torture = script(SCRIPT)
    found = {"bombs": [torture.Tried("a case", failure, 3)], torture.CONTROL: [torture.Tried("a control", shown)]}
    monkeypatch.setattr(torture, "outcomes", lambda section, task, share, seed: found[task])
    assert torture.main(["--only", "bombs"]) == status
    out = capsys.readouterr().out
    assert f"| bombs | 3     | {0 if failure else 3}    | {3 if failure else 0}" in out
    assert ("FAILED" in out) == (status == 1)
    assert ('--only "bombs: ' in out) == (status == 1)


def test_a_task_whose_process_ends_on_the_way_is_a_failure(
    script: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torture = script(SCRIPT)
    dying = tmp_path / "dying.py"
    dying.write_text("import os; os._exit(0)")
    monkeypatch.setattr(torture, "__file__", str(dying))
    (only,) = torture.outcomes("bombs", "bombs", 1.0, 0)
    assert only.failure
    dying.write_text("import os; os.kill(os.getpid(), 9)")
    (only,) = torture.outcomes("bombs", "bombs", 1.0, 0)
    assert "-9" in only.failure


def test_a_section_that_there_is_not_is_said(script: Callable[[Path], ModuleType]) -> None:
    with pytest.raises(SystemExit, match="hostile folders"):
        script(SCRIPT).main(["--only", "nothing"])
