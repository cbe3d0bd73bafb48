"""Every benchmark that has goals, one after the other, in one table; meant for ten minutes on two quiet cores.

    python benchmarks/all.py [--only NAME ...] [--full] [--rounds N] [--record] [--out FILE]

Each runs with --quick, in a process of its own; what it writes goes to one JSON file, with the seconds it took.

What has no unit is compared with the recorded figures, in `recorded.json`; absolute times and rates never are. A row is
worse if its bounds and the recorded bounds do not overlap, in the bad direction. Bounds are those of one process, and
processes differ by more (where memory lies, which kernels were chosen): in the end a benchmark with a row that is worse
runs once more, in a fresh process, and there is a warning if the row is worse in both. Quick ones do so only within the
ten minutes; which did not is said, and so is which was stopped when they were over. Rows without bounds are shown, not
compared. What was recorded on another machine, with other threads or another version of torch is compared all the same,
and it is said. Exit status 1: a benchmark failed to run.

`--record` compares nothing: what was measured becomes the recorded figures, with date, commit, rounds and conditions.
`python benchmarks/tables.py` then writes them into docs/performance.md.
"""

import argparse
import datetime
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
    "early_exits",
    "exported",
    "two_processes",
    "objective",
    "end_to_end",
    "xray",
    "data",
    "evaluation",
    "growth",
    "training_step",  # last: compiling takes minutes where torch has kept no kernels
)
MEANT = 600  # seconds of all quick ones: none runs a second time beyond it
SECONDS = 600  # that one may take; a quiet machine needs less than 120 for one with --quick
CONDITIONS = ("device", "cores", "threads", "torch", "quick")
ABOUT = ("date", "commit", "clean", "rounds", "load_average", "took_seconds", "table")
MEASURED = ("src", "tests/backbones", "benchmarks/*.py", "pyproject.toml")  # the code that a figure is of
ABSOLUTE = ("s", "ms", "images/s", "GiB", "billion operations a second")  # units of what is not compared
COLUMNS = ("benchmark", "row", "measured", "bounds", "goal", "met", "recorded")

Row = dict[str, Any]
Found = dict[str, Any]


def run(name: str, words: Sequence[str], seconds: float = SECONDS) -> tuple[Found | None, str]:
    """What a benchmark found; None and the end of what it said, where it failed.

    Raises:
        TimeoutExpired: With --quick it has taken longer than `seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(out), *words]
        limit = seconds if "--quick" in words else None
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode or not out.exists():
            return None, "\n".join(done.stderr.splitlines()[-5:]) or f"exit status {done.returncode}"
        found: Found = json.loads(out.read_text())
        return found, ""


def measured(name: str, words: Sequence[str], seconds: float) -> tuple[Found | None, str]:
    """What a benchmark found, of which code and when; errors as of `run`."""
    about, started = {**origin(), "quick": "--quick" in words}, time.perf_counter()
    one, said = run(name, words, seconds)
    if one is None:
        return None, said
    return {**one, **about, "took_seconds": round(time.perf_counter() - started)}, ""


def run_again(found: Mapping[str, Found], words: Sequence[str], recorded: Mapping[str, Found]) -> list[str]:
    """Run once more what has a row that is worse, put its rows under `again`; who had no time left for that."""
    left = []
    for name, one in found.items():
        if not warnings({name: one}, recorded):
            continue
        if "--quick" in words and total(found) + one["took_seconds"] > MEANT:
            left.append(name)
            continue
        started = time.perf_counter()
        second, _ = run(name, words)
        one["again"] = {} if second is None else {row["name"]: row for row in second["rows"]}
        one["took_seconds"] += round(time.perf_counter() - started)
    return left


def total(found: Mapping[str, Found]) -> int:
    """The seconds of all."""
    return sum(one["took_seconds"] for one in found.values())


def origin() -> Found:
    """Now, in UTC; the commit; and whether what is measured is as committed. None where git cannot say."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=HERE.parent, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return None if done.returncode else done.stdout.strip()

    changed = git("status", "--porcelain", "--", *MEASURED)
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "clean": None if changed is None else not changed,
    }


def kept(found: Found) -> Found:
    """What is recorded of a benchmark: its conditions, where it comes from, and its rows by name."""
    rows = {row["name"]: {key: given for key, given in row.items() if key != "name"} for row in found["rows"]}
    about = {key: found[key] for key in ABOUT if key in found}
    return {"conditions": {name: found.get(name) for name in CONDITIONS}, **about, "rows": rows}


def is_compared(row: Row) -> bool:
    """Whether a row has bounds, and no unit that hangs on the machine."""
    return "at_least" in row and row["unit"] not in ABSOLUTE


def more_is_better(row: Row) -> bool:
    """Whether a figure is the better the larger it is: by its goal, or its unit where it has none."""
    return str(row["goal"]).startswith("at least") or bool(row["goal"] == "none" and row["unit"].startswith("times"))


def is_worse(row: Row, before: Row) -> bool:
    """Whether today's bounds lie wholly beyond the recorded ones, in the bad direction."""
    if "at_least" not in before or not is_compared(row):
        return False
    if more_is_better(row):
        return bool(row["at_most"] < before["at_least"])
    return bool(row["at_least"] > before["at_most"])


def is_worse_again(one: Found, row: Row, before: Row) -> bool:
    """Whether a row is worse, in the second run as well if there was one."""
    return is_worse(row, before) and is_worse(one.get("again", {}).get(row["name"], row), before)


def warnings(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> list[str]:
    """A line for each row that is worse than the recorded one."""
    lines = []
    for name, one in found.items():
        before = recorded.get(name, {}).get("rows", {})
        for row in one["rows"]:
            if row["name"] in before and is_worse_again(one, row, before[row["name"]]):
                again = one.get("again", {}).get(row["name"])
                today = bounded(row) + ("" if again is None else f", in another process {bounded(again)}")
                lines.append(f"{name}, {row['name']}: {today}, recorded {bounded(before[row['name']])}")
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


def middle(row: Row) -> float:
    """The figure itself."""
    return float(row["ratio"] if "ratio" in row else row["value"])


def bounded(row: Row) -> str:
    """A figure with its bounds, if it has any."""
    return f"{middle(row):.4g}" + (f" [{row['at_least']:.4g}, {row['at_most']:.4g}]" if "at_least" in row else "")


def line(name: str, row: Row, before: Row | None, one: Found) -> tuple[str, ...]:
    """A row of the table; `before` is what is recorded of it, `one` what the benchmark found."""
    bounds = f"{row['at_least']:.4g} to {row['at_most']:.4g}" if "at_least" in row else ""
    met = "" if row["goal"] == "none" else "yes" if row["met"] else "no"
    then = "" if before is None or not is_compared(row) else bounded(before)
    if then and before is not None and is_worse(row, before):
        then += " worse" if is_worse_again(one, row, before) else " worse, but not again"
    return name, row["name"], f"{middle(row):.4g} {row['unit']}".strip(), bounds, row["goal"], met, then


def lines(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> list[tuple[str, ...]]:
    """All rows of the table."""
    return [
        line(name, row, recorded.get(name, {}).get("rows", {}).get(row["name"]), one)
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


def took(found: Mapping[str, Found]) -> str:
    """The seconds of each benchmark and of all."""
    seconds = {name: one["took_seconds"] for name, one in found.items()}
    return ", ".join(f"{name} {s}" for name, s in seconds.items()) + f"; {total(found)} in all"


def show(found: Mapping[str, Found], recorded: Mapping[str, Found]) -> None:
    """The table, and what is to be said of it."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table(*COLUMNS, title=heading(found), caption=f"seconds: {took(found)}")
    before = ""
    for cells in lines(found, recorded):
        if before and cells[0] != before:
            table.add_section()
        table.add_row(*map(Text, cells))  # names may hold what rich would take for its own
        before = cells[0]
    console.print(table)
    for difference in differences(found, recorded):
        console.print(f"Other conditions: {difference}; compared all the same.", markup=False)
    for worse in warnings(found, recorded):
        console.print(f"Worse than recorded: {worse}.", markup=False)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME", help="these alone")
    made.add_argument("--full", action="store_true", help="without --quick")
    made.add_argument("--rounds", type=int, help="with --full: measurements of each (default its own)")
    made.add_argument("--record", action="store_true", help="write recorded.json")
    made.add_argument(
        "--out", type=Path, default=HERE / "latest.json", help="where JSON goes (default latest.json here)"
    )
    return made


def main(arguments: Sequence[str] | None = None, recorded_at: Path = HERE / "recorded.json") -> int:
    """Run, show, compare, write."""
    options = parser().parse_args(arguments)
    words = [*([] if options.full else ["--quick"])]
    words += [] if options.rounds is None else ["--rounds", str(options.rounds)]
    recorded = json.loads(recorded_at.read_text()) if recorded_at.exists() else {}
    before = {} if options.record else recorded
    found: dict[str, Found] = {}
    failed = {}
    stopped = []
    started = time.perf_counter()
    for name in options.only:
        try:
            one, said = measured(name, words, max(1.0, min(SECONDS, MEANT - (time.perf_counter() - started))))
        except subprocess.TimeoutExpired:
            stopped.append(name)
            continue
        if one is None:
            failed[name] = said
            continue
        found[name] = one
        print(f"{name}: {one['took_seconds']} s", file=sys.stderr, flush=True)
        if options.record:
            recorded[name] = kept(one)
            recorded_at.write_text(json.dumps(recorded, indent=1) + "\n")
    left = run_again(found, words, before)
    options.out.write_text(json.dumps({"took_seconds": total(found), "benchmarks": found}, indent=1) + "\n")
    if found:
        show(found, before)
    for name in left:
        print(f"{name} is worse and did not run again: {MEANT} s are over. all.py --only {name} asks once more.")
    for name in stopped:
        print(
            f"{name} was stopped: {MEANT} s are over. all.py --only {name} runs it, and finds kernels that were kept."
        )
    for name, said in failed.items():
        print(f"{name} failed to run: {said}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
