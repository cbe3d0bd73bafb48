"""docs/performance.md says what is recorded: `benchmarks/tables.py` has nothing left to write."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import tables

PAGE = """# Title
<!-- table: goals -->
old goals
<!-- end of table -->
between
<!-- table: some -->
old rows
<!-- end of table -->
<!-- table: some table -->
old lines
<!-- end of table -->
"""
CONDITIONS = {"device": "a processor", "cores": 2, "threads": 1, "torch": "2.13", "quick": True}
RATIO = {"unit": "times", "ratio": 1.23456, "at_least": 1.1, "at_most": 1.3, "goal": "at least 1.2", "met": False}
VALUE = {"unit": "images/s", "value": 119000.0, "goal": "none", "met": True, "of_peak": 0.417}


@pytest.fixture
def found() -> dict[str, Any]:
    about = {"date": "2026-11-26 18:00 UTC", "commit": "abc", "clean": False, "rounds": 7, "load_average": 0.1}
    about |= {"took_seconds": 12, "table": ["| own |", "|---|"]}
    return {"conditions": CONDITIONS, **about, "rows": {"a ratio": RATIO, "a rate": VALUE}}


def test_tables_are_written_and_all_else_is_left(found) -> None:
    lines = tables.written(PAGE, {"some": found}).splitlines()
    assert "| a ratio | 1.235 | times | 1.1 to 1.3 | at least 1.2 | **no** |  |" in lines
    assert "| a rate | 119,000 | images/s |  |  |  | 42 % |" in lines
    command = "`python benchmarks/some.py --quick --threads 1`"
    assert f"| some: a ratio | 1.235 times | 1.1 to 1.3 | at least 1.2 | **no** | {command} |" in lines
    assert "| own |" in lines
    assert sum("commit abc with changes" in line for line in lines) == 3  # each table says of what it is
    assert not any(line.startswith("old") for line in lines)
    assert lines[0] == "# Title"
    assert "between" in lines
    assert tables.written("\n".join(lines), {"some": found}) == "\n".join(lines)  # again: nothing left to do


def test_many_goals_are_one_line(found, monkeypatch) -> None:
    monkeypatch.setattr(tables, "SUMMED", ("some",))
    assert any("| some: 1 goals | 1 missed |  | all | **no** |" in line for line in tables.with_goals({"some": found}))


def test_a_benchmark_that_made_no_table_of_its_own_leaves_it(found) -> None:
    del found["table"]
    written = tables.written(PAGE, {"some": found})
    assert "old lines" in written
    assert "old rows" not in written


def test_what_is_recorded_without_a_date_leaves_its_table(found) -> None:
    del found["date"]
    assert tables.written(PAGE, {"some": found}) == PAGE
    assert tables.written(PAGE, {}) == PAGE


def test_the_page_says_what_is_recorded() -> None:
    page = tables.PAGE.read_text()
    recorded = json.loads((tables.HERE / "recorded.json").read_text())
    assert tables.written(page, recorded) == page
    which = [match[1] for match in tables.BLOCK.finditer(page)]
    assert "goals" in which
    assert {one.partition(" ")[0] for one in which} - {"goals"} <= {path.stem for path in tables.HERE.glob("*.py")}
    assert page.count("<!-- table: ") == page.count("<!-- end of table -->") == len(which)
