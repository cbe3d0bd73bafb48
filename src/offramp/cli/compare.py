"""`offramp compare`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from offramp.errors import UsageError
from offramp.terminal import escaped, say


def compare(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Put runs side by side: seeds grouped, with mean, standard deviation and half-range of every exit.

    Runs that have no current evaluation are evaluated first. Differences to the first group are paired by seed.

    Args:
        runs: Folders of finished runs, or folders that hold several, such as `offramp train --seeds 5` makes.
        as_json: Print one JSON object, and nothing else, to standard output.
        out: Also write the tables to FILE: a page with a plot (.html), or Markdown (.md).
        plot: Also write accuracy against operations to FILE (.svg or .png).
    """
    if not runs:
        raise UsageError("Name at least one run: offramp compare RUN ...")
    _refuse_unless_writable("--out", out, (".html", ".md"))
    _refuse_unless_writable("--plot", plot, (".svg", ".png"))
    from offramp.reports import compare as put_side_by_side
    from offramp.reports import evaluate, figures, side_by_side
    from offramp.reports.terminal import console, passes
    from offramp.storage import write_atomically

    if plot is not None:
        figures.require()
    with passes() as progress:

        def measure(run: Path) -> dict[str, object]:
            say(f"Evaluating {run}")
            return evaluate(run, page=False, progress=lambda part, *done: progress(f"{run} {part}", *done)).to_json()

        comparison = put_side_by_side(runs, measure=measure, note=say)
    if as_json:
        print(json.dumps(comparison.to_json()))
    else:
        console().print(side_by_side.on_terminal(comparison))
    files = {}
    if out is not None:
        text = side_by_side.html(comparison) if out.endswith(".html") else side_by_side.markdown(comparison)
        files[out] = text.encode()
    if plot is not None:
        files[plot] = side_by_side.plot(comparison, "svg" if plot.endswith(".svg") else "png")
    for file, content in files.items():
        write_atomically(Path(file), content)
        print(escaped(file), file=sys.stderr if as_json else sys.stdout)


def _refuse_unless_writable(option: str, file: str | None, endings: tuple[str, str]) -> None:
    if file is None:
        return
    path = Path(file)
    if path.suffix not in endings:
        raise UsageError(f"{option} {file} should end in {endings[0]} or {endings[1]}.")
    if path.is_dir():
        raise UsageError(f"{option} {file} is a folder; name a file.")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {file}: there is no folder {path.parent}. Make it first, or name another.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {file}: the folder {path.parent} is not writable.")
