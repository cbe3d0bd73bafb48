"""Numbers that run away: status 0 means that all in the folder is finite; else one line, which holds for every file."""

import importlib.util
import re
from pathlib import Path

import pytest

from offramp.cli import main

_SPEC = importlib.util.spec_from_file_location("trainings", Path(__file__).with_name("trainings.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
trainings = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(trainings)


def check(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    status = main([*arguments, "--out", str(folder)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("offramp: ")]
    if status == 2:  # refused at the door
        assert len(lines) == 1
        assert not folder.exists()
        return status
    assert trainings.broken(folder) == []
    checkpoints = sorted((folder / "checkpoints").glob("*.safetensors"))
    if status == 0:
        assert lines == []
        assert (folder / "weights.safetensors").is_file()
        return status
    assert status == 1
    assert len(lines) == 1
    assert not (folder / "weights.safetensors").exists()
    named = re.search(r"the newest checkpoint is (\S+)\. ", lines[0])
    assert [Path(named[1])] == checkpoints[-1:] if named else not checkpoints
    assert "there is no checkpoint yet" in lines[0] or named
    return status


@pytest.mark.parametrize(("name", "status"), [*trainings.FEW.items()])
def test_a_rate_too_high_leaves_nothing_that_is_not_finite(
    tmp_path: Path, name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(trainings.CASES[name], tmp_path / "run", capsys) == status


@pytest.mark.slow
@pytest.mark.parametrize("way", trainings.WAYS)
def test_every_rate_in_every_way(tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        check(arguments, tmp_path / str(number), capsys)
        for number, (name, arguments) in enumerate(trainings.CASES.items())
        if name.startswith(f"{way}, ")
    }
    assert found >= {1, 2}


def test_what_is_broken_is_seen(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n{"loss": NaN}\n')
    assert trainings.broken(tmp_path) == ["metrics.jsonl: NaN"]
