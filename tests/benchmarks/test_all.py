"""`benchmarks/all.py`: what is compared, what is warned of, and that no benchmark is left out."""

import ast
import json
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


def value() -> dict[str, Any]:
    return {"name": "a time", "unit": "ms", "value": 12.5, "goal": "under 50 ms", "met": True}


def found(*rows: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"name": {"what": "some", **CONDITIONS, **others, "rows": list(rows)}}


def recorded(everything: ModuleType, *rows: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {name: everything.ratios(one) for name, one in found(*rows, **others).items()}


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


def test_only_ratios_are_recorded_and_compared(everything) -> None:
    before = recorded(everything, ratio(1.2, 1.3), value())
    assert list(before["name"]["rows"]) == ["a row"]
    slow = {**value(), "value": 1e6}
    assert not everything.warnings(found(slow), before)


def test_what_nobody_recorded_is_no_warning(everything) -> None:
    assert not everything.warnings(found(ratio(0.1, 0.2)), {})
    assert not everything.differences(found(ratio(0.1, 0.2)), {})


def test_other_conditions_are_said_and_compared_all_the_same(everything) -> None:
    before = recorded(everything, ratio(1.2, 1.3))
    today = found(ratio(0.5, 0.6), device="another", torch="3.0")
    assert everything.differences(today, before) == [
        "device another, recorded a processor (name)",
        "torch 3.0, recorded 2.13 (name)",
    ]
    assert len(everything.warnings(today, before)) == 1
    assert not everything.differences(found(ratio(0.5, 0.6)), before)


def test_the_table_has_a_line_for_each_row(everything) -> None:
    rows = [ratio(1.0, 1.1), value(), ratio(0.9, 1.1, "none")]
    before = recorded(everything, ratio(1.2, 1.3))
    first, second, third = everything.lines(found(*rows), before)
    assert first == (
        "name", "a row", "1.05 times as fast", "1 to 1.1", "at least 1.4", "yes", "1.25 [1.2, 1.3] worse",
    )  # fmt: skip
    assert second == ("name", "a time", "12.5 ms", "", "under 50 ms", "yes", "")
    assert third[5] == ""
    assert all(len(line) == len(everything.COLUMNS) for line in (first, second, third))


def test_the_peak_stands_in_the_heading(everything) -> None:
    details = {"a network": {"peak, billion operations a second": {"float32": 185.0, "bf16": 413.5}}}
    today = {"training_step": {**CONDITIONS, "rows": [], "details": details}}
    assert everything.heading(today).endswith("peak, billion operations a second: float32 185, bf16 413.5")
    assert everything.heading(found()) == "a processor, 2 cores, torch 2.13"


@pytest.fixture
def runs(everything, monkeypatch) -> dict[str, Any]:
    """What benchmarks give when they are run; None: they fail."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(everything, "run", lambda name, full: (given[name], "" if given[name] else "it broke"))
    return given


def test_warnings_leave_the_exit_status_at_0(everything, runs, tmp_path, capsys) -> None:
    at, out = tmp_path / "recorded.json", tmp_path / "latest.json"
    words = ["--only", "objective", "--out", str(out)]
    runs["objective"] = found(ratio(1.2, 1.3))["name"]
    assert everything.main([*words, "--record"], at) == 0
    assert "Worse" not in capsys.readouterr().out
    runs["objective"] = found(ratio(1.0, 1.1))["name"]
    before = at.read_text()
    assert everything.main(words, at) == 0
    assert "Worse than recorded: objective, a row: 1.05 [1, 1.1], recorded 1.25 [1.2, 1.3]." in capsys.readouterr().out
    assert json.loads(out.read_text()) == runs
    assert at.read_text() == before


def test_a_benchmark_that_fails_is_named_and_the_others_are_shown(everything, runs, tmp_path, capsys) -> None:
    runs |= {"objective": None, "data": found(ratio(1.0, 1.1))["name"]}
    status = everything.main(["--only", "objective", "data", "--out", str(tmp_path / "o")], tmp_path / "r")
    said = capsys.readouterr()
    assert status == 1
    assert "a row" in said.out
    assert "objective failed to run: it broke" in said.err


def test_recording_some_keeps_the_others(everything, runs, tmp_path) -> None:
    at = tmp_path / "recorded.json"
    for name in ("objective", "data"):
        runs[name] = found(ratio(1.2, 1.3))["name"]
        everything.main(["--only", name, "--record", "--out", str(tmp_path / "o")], at)
    assert set(json.loads(at.read_text())) == {"objective", "data"}


def test_a_script_that_breaks_says_why(everything, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(everything, "HERE", tmp_path)
    (tmp_path / "objective.py").write_text("raise SystemExit('no such luck')")
    assert everything.run("objective", False) == (None, "no such luck")
