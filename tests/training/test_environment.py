import subprocess
from pathlib import Path

import pytest
import torch

import offramp
from offramp.training.environment import describe


def test_what_is_written_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = describe(torch.device("cpu"))
    assert start["torch"] == torch.__version__
    assert start["offramp"] == offramp.__version__
    assert start["threads"] == torch.get_num_threads()
    assert start["processes"] == 1
    assert (start["device"], bool(start["processor"])) == ("cpu", True)
    assert start["git"] is None


def test_the_git_state_says_whether_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        git(*words)
    monkeypatch.chdir(tmp_path)
    clean = describe(torch.device("cpu"))["git"]
    (tmp_path / "file").write_text("2")
    changed = describe(torch.device("cpu"))["git"]
    assert len(clean["commit"]) == 40
    assert clean["changed"] is False
    assert changed == {"commit": clean["commit"], "changed": True}
