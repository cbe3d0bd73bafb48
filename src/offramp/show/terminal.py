"""The terminal: what is printed of a result, and what shows how far a command is. Nothing here imports torch."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from offramp.show.watch import Progress as PassProgress
from offramp.show.watch import Watch
from offramp.terminal import Screen, escaped, say


def print_result(
    to_json: Callable[[], dict[str, Any]],
    table: Callable[[], RenderableType],
    written: Iterable[str | Path],
    *,
    as_json: bool,
    remark: str | None = None,
) -> None:
    """A table and the files written; with `as_json` one JSON object alone on standard output, the files elsewhere.

    A `remark` stands under the table.
    """
    if as_json:
        print(json.dumps(to_json()))
    else:
        console().print(table())
        if remark is not None:
            print(escaped(remark))
    for path in written:
        print(escaped(path), file=sys.stderr if as_json else sys.stdout)


def ruled_table(*names: str, left: int = 0, **more: Any) -> Table:
    """A table without rows; the first `left` columns are words, the others numbers, to the right."""
    table = Table(box=SIMPLE_HEAD, **{"pad_edge": False, **more})
    for number, name in enumerate(names):  # Text: [y] would be a style
        table.add_column(Text(name), justify="left" if number < left else "right", no_wrap=True)
    return table


def console() -> Screen:
    """Standard output; wide enough for a table where it is no terminal."""
    plain = Screen(highlight=False)
    return plain if plain.is_terminal else Screen(highlight=False, width=max(plain.width, 120))


@contextmanager
def passes() -> Iterator[PassProgress]:
    """A bar per data set on standard error, while it is read; nothing where that is no terminal."""
    on_stderr = Screen(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=on_stderr, transient=True, disable=not on_stderr.is_terminal) as bars:
        tasks = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show


@contextmanager
def countdown() -> Iterator[Callable[[float], None]]:
    """A bar with the time left on standard error; drawn only when a share is handed in, for a thread would be timed."""
    on_stderr = Screen(stderr=True)
    columns = TextColumn("timing"), BarColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=on_stderr, transient=True, auto_refresh=False, disable=not on_stderr.is_terminal
    ) as bar:
        task = bar.add_task("timing", total=1.0)

        def show(share: float) -> None:
            bar.update(task, completed=share)
            bar.refresh()

        yield show


IN_TERMINAL = Watch(note=say, bars=passes, countdown=countdown)
