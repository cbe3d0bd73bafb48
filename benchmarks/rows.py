"""What benchmarks with goals share: their options, their rows, their JSON.

A benchmark has `parser()` and `measure(options) -> dict`. The dictionary has "what", the conditions and "rows"; a row
has a name, a unit, a value or a ratio with its bounds, the goal in words, and whether it is met. It may have "table",
lines of Markdown that are shown as they are.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from offramp.runtime.timing import ratio

ENOUGH = 5  # values for one-sided 95 % intervals

Row = dict[str, Any]


def parser(about: str | None, *, rounds: int, threads: int) -> argparse.ArgumentParser:
    """The options that all have."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help=f"measurements of each (default {rounds}, at least 5)")
    made.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default {threads})")
    made.add_argument("--quick", action="store_true", help="fewer and smaller: within a minute")
    made.add_argument("--out", type=Path, help="where JSON goes as well")
    return made


def bounds(values: Sequence[float]) -> dict[str, float]:
    """The bounds of the median's one-sided 95 % intervals; none of fewer values than such intervals need."""
    found = ratio(values, [1.0] * len(values)) if len(values) >= ENOUGH else {}
    found.pop("ratio", None)
    return found


def value(
    name: str, unit: str, values: Sequence[float], goal: str, *, below: float | None = None, above: float | None = None
) -> Row:
    """The median and its bounds. The goal is met if the bound (of few values: the worst) keeps `below` or `above`."""
    found = bounds(values)
    low, high = found.get("at_least", min(values)), found.get("at_most", max(values))
    met = high < below if below is not None else above is not None and low >= above
    return {"name": name, "unit": unit, "value": round(median(values), 4), **found, "goal": goal, "met": met}


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, its bounds where there are enough values, smallest and largest."""
    return {
        "median": round(median(values), 4),
        **bounds(values),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def paired(
    name: str,
    unit: str,
    seconds: Sequence[float],
    reference: Sequence[float],
    goal: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row:
    """The paired ratio. The goal is met if the bound of its one-sided 95 % interval keeps to a number."""
    found = ratio(seconds, reference)
    met = found["at_most"] <= at_most if at_most is not None else found["at_least"] >= (at_least or 0.0)
    return {"name": name, "unit": unit, **found, "goal": goal, "met": met}


def main(options: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> None:
    """Measure, print JSON, and write it where asked to."""
    found = text(measure(options))
    print(found, end="")
    if options.out is not None:
        options.out.write_text(found)


def text(found: dict[str, Any]) -> str:
    """As it is printed and written."""
    return json.dumps(found, indent=1) + "\n"
