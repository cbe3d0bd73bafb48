"""Write what is recorded into docs/performance.md: python benchmarks/tables.py (nothing is measured).

A table stands between a line `<!-- table: WHICH -->` and a line `<!-- end of table -->`. WHICH is the name of a
benchmark, for all its rows; a name and `table`, for the table that the benchmark makes itself; or `goals`, for every
row that has a goal, with the benchmarks of many rows in one line each. What was recorded without a date, or not at all,
leaves its table as it is: its figures are from before.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BLOCK = re.compile(r"(?<=<!-- table: )([\w ]+)( -->\n)(.*?)(?=<!-- end of table -->)", re.DOTALL)
SUMMED = ("exported", "growth")  # many rows with goals: one line in the table of goals

Found = Mapping[str, Any]


def number(x: float) -> str:
    """Four digits, or whole thousands in groups."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def figure(row: Found) -> str:
    """The measured number."""
    return number(row["ratio"] if "ratio" in row else row["value"])


def bounds(row: Found) -> str:
    """The bounds, if there are any."""
    return f"{number(row['at_least'])} to {number(row['at_most'])}" if "at_least" in row else ""


def met(row: Found) -> str:
    return "" if row["goal"] == "none" else "yes" if row["met"] else "**no**"


def command(name: str, found: Found) -> str:
    """How to measure it again."""
    words = "--quick" if found["conditions"]["quick"] else f"--rounds {found['rounds']}"
    threads = found["conditions"]["threads"]
    return f"`python benchmarks/{name}.py {words} --threads {threads}`"


def caption(name: str, found: Found) -> str:
    """Command and conditions, in a sentence or two."""
    conditions, changed = found["conditions"], " with changes" if found["clean"] is False else ""
    where = f"{conditions['device']}, {conditions['cores']} cores, torch {conditions['torch']}"
    return (
        f"{command(name, found)}: {found['date']}, commit {found['commit'] or 'unknown'}{changed}, {where}, "
        f"{found['rounds']} rounds, load {found['load_average']} before, {found['took_seconds']} s."
    )


def every_row(name: str, found: Found) -> list[str]:
    """All rows of a benchmark."""
    with_peak = any("of_peak" in row for row in found["rows"].values())
    heads = ["what", "measured", "unit", "bounds", "goal", "met", *(["share of peak"] if with_peak else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for about, row in found["rows"].items():
        cells = [about, figure(row), row["unit"], bounds(row), "" if row["goal"] == "none" else row["goal"], met(row)]
        cells += [f"{100 * row['of_peak']:.0f} %" if "of_peak" in row else ""] if with_peak else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def with_goals(recorded: Mapping[str, Found]) -> list[str]:
    """Every row that has a goal, after the benchmark's name."""
    heads = ("what", "measured", "bounds", "goal", "met", "command")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, found in recorded.items():
        wanted = {
            f"{name.replace('_', ' ')}: {about}": row for about, row in found["rows"].items() if row["goal"] != "none"
        }
        if name in SUMMED and wanted:
            missed = sum(not row["met"] for row in wanted.values())
            cells = (
                f"{name}: {len(wanted)} goals",
                f"{missed} missed",
                "",
                "all",
                "**no**" if missed else "yes",
                command(name, found),
            )
            lines.append(f"| {' | '.join(cells)} |")
            continue
        for about, row in wanted.items():
            cells = (
                about,
                f"{figure(row)} {row['unit']}".strip(),
                bounds(row),
                row["goal"],
                met(row),
                command(name, found),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def block(which: str, recorded: Mapping[str, Found]) -> list[str] | None:
    """The lines of a table; None where what it needs is not recorded, or has no date."""
    name, _, own = which.partition(" ")
    needed = recorded if which == "goals" else {name: recorded.get(name, {})}
    if not needed or not all("date" in found for found in needed.values()):
        return None
    if which == "goals":
        return [*with_goals(recorded), "", *(f"- {caption(*one)}" for one in recorded.items())]
    found = needed[name]
    if own and "table" not in found:
        return None
    return [*(found["table"] if own else every_row(name, found)), "", caption(name, found)]


def written(page: str, recorded: Mapping[str, Found]) -> str:
    """The page with the recorded figures in its tables."""

    def table(match: re.Match[str]) -> str:
        lines = block(match[1], recorded)
        return match[0] if lines is None else f"{match[1]}{match[2]}\n" + "\n".join(lines) + "\n\n"

    return BLOCK.sub(table, page)


if __name__ == "__main__":
    recorded_figures = json.loads((HERE / "recorded.json").read_text())
    PAGE.write_text(written(PAGE.read_text(), recorded_figures))
