"""`benchmarks/all.py`: what is compared, what is warned of, and that no benchmark is left out."""

import ast
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONDITIONS = {"device": "a processor", "cores": 2, "threads": 2, "torch": "2.13"}


@pytest.fixture(scope="module")
def everything(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(BENCHMARKS / "all.py")


def ratio(low: float, high: float, goal: str = "at least 1.4", unit: str = "times as fast") -> dict[str, Any]:
    middle = (low + high) / 2
    return {"name": "a row", "unit": unit, "ratio": middle, "at_least": low, "at_most": high, "goal": goal, "met": True}


def value(low: float = 12.0, high: float = 13.0, unit: str = "ms") -> dict[str, Any]:
    bounds = {"value": (low + high) / 2, "at_least": low, "at_most": high}
    return {"name": "a value", "unit": unit, **bounds, "goal": "under 50", "met": True}


def found(*rows: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"name": {"what": "some", **CONDITIONS, **others, "rows": list(rows)}}


def recorded(everything: ModuleType, *rows: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {name: everything.kept(one) for name, one in found(*rows, **others).items()}


def test_every_script_that_measures_is_run(everything) -> None:
    measuring = set()
    for path in BENCHMARKS.glob("*.py"):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if "measure" in functions:
            assert "parser" in functions, path
            measuring.add(path.stem)
    assert measuring - {"gpu"} == set(everything.BENCHMARKS)  # that one is `make bench-gpu`
    assert len(everything.BENCHMARKS) == len(set(everything.BENCHMARKS))


@pytest.mark.parametrize(
    ("goal", "unit", "today", "worse"),
    [
        ("at least 1.4", "", (1.0, 1.19), True),
        ("at least 1.4", "", (1.0, 1.2), False),  # the bounds touch
        ("at least 1.4", "", (2.0, 2.1), False),  # the good direction
        ("at most 1.05", "", (1.31, 1.4), True),
        ("at most 1.05", "", (1.3, 1.4), False),
        ("at most 1.05", "", (0.9, 1.0), False),
        ("none", "times as fast", (1.0, 1.1), True),
        ("none", "times as fast", (2.0, 2.1), False),
    ],
)
def test_worse_is_beyond_the_recorded_bounds_in_the_bad_direction(everything, goal, unit, today, worse) -> None:
    before = recorded(everything, ratio(1.2, 1.3, goal, unit))
    lines = everything.warnings(found(ratio(*today, goal, unit)), before)
    assert bool(lines) == worse
    if worse:
        assert "a row" in lines[0]
        assert "[1.2, 1.3]" in lines[0]


@pytest.fixture
def runs(everything, monkeypatch) -> dict[str, Any]:
    """What benchmarks give when they are run, a list: one after the other; None: they fail."""
    given: dict[str, Any] = {}

    def run(name: str, words: list[str], seconds: float = 600) -> tuple[Any, str]:
        if given[name] == "too long":
            raise subprocess.TimeoutExpired(name, seconds)
        one = given[name].pop(0) if isinstance(given[name], list) else given[name]
        return one and dict(one), "" if one else "it broke"

    monkeypatch.setattr(everything, "run", run)
    return given


def one(low: float, high: float) -> dict[str, Any]:
    given: dict[str, Any] = found(ratio(low, high), rounds=7)["name"]
    return given


@pytest.fixture
def compare(everything, runs, tmp_path, capsys) -> Callable[..., str]:
    """What is said of one benchmark that is run again and again, after [1.2, 1.3] was recorded; no failure."""

    def go(*times: dict[str, Any] | None) -> str:
        words = ["--only", "objective", "--out", str(tmp_path / "latest.json")]
        runs["objective"] = [one(1.2, 1.3), *times]
        assert everything.main([*words, "--record"], tmp_path / "recorded.json") == 0
        assert "Worse" not in capsys.readouterr().out
        before = (tmp_path / "recorded.json").read_text()
        assert everything.main(words, tmp_path / "recorded.json") == 0
        assert (tmp_path / "recorded.json").read_text() == before
        assert not runs["objective"]
        return str(capsys.readouterr().out)

    return go


def test_who_is_worse_runs_again_and_is_warned_of_if_worse_in_both(compare) -> None:
    assert (
        "Worse than recorded: objective, a row: 1.05 [1, 1.1], in another process 1.1 [1.05, 1.15], recorded "
        "1.25 [1.2, 1.3]." in re.sub(r"\s+", " ", compare(one(1.0, 1.1), one(1.05, 1.15)))
    )


def test_who_is_worse_in_one_process_alone_is_none_to_warn_of(everything, compare) -> None:
    assert "Worse than" not in compare(one(1.0, 1.1), one(1.1, 1.25))
    today = found(ratio(1.0, 1.1), again={"a row": ratio(1.1, 1.25)})
    (cells,) = everything.lines(today, recorded(everything, ratio(1.2, 1.3)))
    assert cells[-1] == "1.25 [1.2, 1.3] worse, but not again"


def test_who_is_not_worse_runs_once(compare) -> None:
    assert "Worse" not in compare(one(1.0, 1.2))


def test_what_is_recorded_and_shown_says_where_it_comes_from(everything, runs, tmp_path, capsys) -> None:
    runs["objective"] = one(1.2, 1.3)
    out, at = tmp_path / "latest.json", tmp_path / "recorded.json"
    everything.main(["--only", "objective", "--record", "--out", str(out)], at)
    latest = json.loads(out.read_text())
    assert latest["took_seconds"] == latest["benchmarks"]["objective"]["took_seconds"]
    for about in (latest["benchmarks"]["objective"], json.loads(at.read_text())["objective"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", about["date"])
        assert {"commit", "clean", "took_seconds"} <= about.keys()
        assert about["rounds"] == 7
    assert "0 in all" in capsys.readouterr().out


def test_a_benchmark_that_fails_is_named_and_the_others_are_shown(everything, runs, tmp_path, capsys) -> None:
    runs |= {"objective": None, "data": found(ratio(1.0, 1.1))["name"]}
    status = everything.main(["--only", "objective", "data", "--out", str(tmp_path / "o")], tmp_path / "r")
    said = capsys.readouterr()
    assert status == 1
    assert "a row" in said.out
    assert "objective failed to run: it broke" in said.err


def test_what_is_stopped_after_the_ten_minutes_is_named_and_is_no_failure(everything, runs, tmp_path, capsys) -> None:
    runs |= {"data": found(ratio(1.0, 1.1))["name"], "training_step": "too long"}
    words = ["--only", "data", "training_step", "--out", str(tmp_path / "o")]
    assert everything.main(words, tmp_path / "r") == 0
    said = capsys.readouterr().out
    assert "a row" in said
    assert "all.py --only training_step" in said


def test_recording_some_keeps_the_others(everything, runs, tmp_path) -> None:
    at = tmp_path / "recorded.json"
    for name in ("objective", "data"):
        runs[name] = found(ratio(1.2, 1.3))["name"]
        everything.main(["--only", name, "--record", "--out", str(tmp_path / "o")], at)
    assert set(json.loads(at.read_text())) == {"objective", "data"}
