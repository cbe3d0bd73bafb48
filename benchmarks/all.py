"""Every benchmark that has goals, one after the other, in one table: under ten minutes on two quiet cores.

    python benchmarks/all.py [--only NAME ...] [--full] [--record] [--out FILE]

Each runs with --quick, in a process of its own; what it writes goes to one JSON file. Ratios are compared with the
recorded ones, in `recorded.json`; absolute times never are. One is worse if its bounds and the recorded bounds do not
overlap, in the bad direction: a warning. Rows without bounds (single values: shares, slopes, times) are shown, not
compared. Ratios measured on another machine, with other threads or another version of torch are compared all the same,
and it is said. Exit status 1: a benchmark failed to run. `--record` makes what was measured the recorded ratios.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
BENCHMARKS = (
    "startup",
    "training_step",
    "inference",
    "runtimes",
    "exported",
    "two_processes",
    "objective",
    "end_to_end",
    "xray",
    "data",
    "evaluation",
    "growth",
)
SECONDS = 600  # that one may take; a quiet machine needs less than 60 for one with --quick
CONDITIONS = ("device", "cores", "threads", "torch")
BOUNDS = ("ratio", "at_least", "at_most")
COLUMNS = ("benchmark", "row", "measured", "bounds", "goal", "met", "recorded")

Row = dict[str, Any]
Found = dict[str, Any]


def run(name: str, full: bool) -> tuple[Found | None, str]:
    """What a benchmark found; None and the end of what it said, where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(out), *([] if full else ["--quick"])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=None if full else SECONDS)
        except subprocess.TimeoutExpired:
            return None, f"not done after {SECONDS} s"
        if done.returncode or not out.exists():
            return None, "\n".join(done.stderr.splitlines()[-5:]) or f"exit status {done.returncode}"
        found: Found = json.loads(out.read_text())
        return found, ""


def ratios(found: Found) -> Found:
    """What is recorded of a benchmark: its conditions, and the rows that have a ratio with bounds."""
    kept = {row["name"]: {key: row[key] for key in BOUNDS} for row in found["rows"] if "ratio" in row}
    return {"conditions": {name: found.get(name) for name in CONDITIONS}, "rows": kept}


def more_is_better(row: Row) -> bool:
    """Whether a ratio is the better the larger it is: by its goal, or its unit where it has none."""
    return not row["goal"].startswith("at most") and (
        row["goal"].startswith("at least") or row["unit"].startswith("times")
    )


def is_worse(row: Row, before: Row) -> bool:
    """Whether today's bounds lie wholly beyond the recorded ones, in the bad direction."""
    if more_is_better(row):
        return bool(row["at_most"] < before["at_least"])
    return bool(row["at_least"] > before["at_most"])


def warnings(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> list[str]:
    """A line for each ratio that is worse than the recorded one."""
    lines = []
    for name, one in found.items():
        before = recorded.get(name, {}).get("rows", {})
        for row in one["rows"]:
            if "ratio" in row and row["name"] in before and is_worse(row, before[row["name"]]):
                lines.append(f"{name}, {row['name']}: {bounded(row)}, recorded {bounded(before[row['name']])}")
    return lines


def differences(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> list[str]:
    """A line for each condition that differs from the recorded one, with the benchmarks that it is true of."""
    where: dict[str, list[str]] = {}
    for name, one in found.items():
        before = recorded.get(name, {}).get("conditions", {})
        for key in CONDITIONS:
            if before and before.get(key) != one.get(key):
                where.setdefault(f"{key} {one.get(key)}, recorded {before.get(key)}", []).append(name)
    return [f"{difference} ({', '.join(names)})" for difference, names in where.items()]


def bounded(row: Row) -> str:
    """A ratio with its bounds."""
    return f"{row['ratio']:.4g} [{row['at_least']:.4g}, {row['at_most']:.4g}]"


def line(name: str, row: Row, before: Row | None) -> tuple[str, ...]:
    """A row of the table; `before` is what is recorded of it."""
    measured = row["ratio"] if "ratio" in row else row["value"]
    bounds = f"{row['at_least']:.4g} to {row['at_most']:.4g}" if "at_least" in row else ""
    met = "" if row["goal"] == "none" else "yes" if row["met"] else "no"
    then = "" if before is None else bounded(before) + (" worse" if is_worse(row, before) else "")
    return name, row["name"], f"{measured:.4g} {row['unit']}".strip(), bounds, row["goal"], met, then


def lines(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> list[tuple[str, ...]]:
    """All rows of the table."""
    return [
        line(name, row, recorded.get(name, {}).get("rows", {}).get(row["name"]) if "ratio" in row else None)
        for name, one in found.items()
        for row in one["rows"]
    ]


def heading(found: Mapping[str, Found]) -> str:
    """Where it was measured, and the peak of matrix products where a benchmark has measured it beside its own."""
    first = next(iter(found.values()))
    where = f"{first['device']}, {first['cores']} cores, torch {first['torch']}"
    for details in found.get("training_step", {}).get("details", {}).values():
        for key, rates in details.items():
            if key.startswith("peak"):
                return f"{where}; {key}: {', '.join(f'{precision} {rate:g}' for precision, rate in rates.items())}"
    return where


def show(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> None:
    """The table, and what is to be said of it."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table(*COLUMNS, title=heading(found))
    before = ""
    for cells in lines(found, recorded):
        if before and cells[0] != before:
            table.add_section()
        table.add_row(*map(Text, cells))  # names may hold what rich would take for its own
        before = cells[0]
    console.print(table)
    for difference in differences(found, recorded):
        console.print(f"Other conditions: {difference}; compared all the same, as ratios.", markup=False)
    for worse in warnings(found, recorded):
        console.print(f"Worse than recorded: {worse}.", markup=False)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME", help="these alone")
    made.add_argument("--full", action="store_true", help="without --quick")
    made.add_argument("--record", action="store_true", help="write recorded.json")
    made.add_argument(
        "--out", type=Path, default=HERE / "latest.json", help="where JSON goes (default latest.json here)"
    )
    return made


def main(arguments: Sequence[str] | None = None, recorded_at: Path = HERE / "recorded.json") -> int:
    """Run, show, compare, write."""
    options = parser().parse_args(arguments)
    recorded = json.loads(recorded_at.read_text()) if recorded_at.exists() else {}
    found: dict[str, Found] = {}
    failed = {}
    for name in options.only:
        started = time.perf_counter()
        one, said = run(name, options.full)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if one is None:
            failed[name] = said
        else:
            found[name] = one
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    if found:
        show(found, recorded)
    if options.record:
        recorded |= {name: ratios(one) for name, one in found.items()}
        recorded_at.write_text(json.dumps(recorded, indent=1) + "\n")
    for name, said in failed.items():
        print(f"{name} failed to run: {said}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
