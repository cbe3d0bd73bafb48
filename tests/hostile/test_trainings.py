"""Numbers that run away: status 0 means that all in the folder is finite; else one line, which holds for every file."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("trainings", Path(__file__).with_name("trainings.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
trainings = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(trainings)


@pytest.mark.parametrize(("name", "status"), [*trainings.FEW.items()])
def test_a_rate_too_high_leaves_nothing_that_is_not_finite(tmp_path: Path, name: str, status: int) -> None:
    assert trainings.failure(trainings.CASES[name], tmp_path / "run") == ""
    assert (tmp_path / "run").exists() == (status < 2)
    assert (tmp_path / "run" / "weights.safetensors").exists() == (status == 0)


@pytest.mark.slow
@pytest.mark.parametrize("way", trainings.WAYS)
def test_every_rate_in_every_way(tmp_path: Path, way: str) -> None:
    for number, (name, arguments) in enumerate(trainings.CASES.items()):
        if name.startswith(f"{way}, "):
            assert trainings.failure(arguments, tmp_path / str(number)) == "", name


def test_what_is_broken_is_seen(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n{"loss": NaN}\n')
    assert trainings.broken(tmp_path) == ["metrics.jsonl: NaN"]
