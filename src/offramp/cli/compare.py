"""`offramp compare`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from offramp.errors import UsageError


def compare(
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Put runs side by side: seeds grouped, with mean, standard deviation and half-range of every exit.

    Runs that have no current evaluation are evaluated first. Differences to the first group are paired by seed.

    Args:
        runs: Folders of finished runs, or folders that hold several, such as `offramp train --seeds 5` makes.
        as_json: Print one JSON object, and nothing else, to standard output.
        out: Also write the tables to FILE: a page (.html), or Markdown (.md).
    """
    if out is not None and Path(out).suffix not in (".html", ".md"):
        raise UsageError(f"--out {out} should end in .html or .md.")
    if not runs:
        raise UsageError("Name at least one run: offramp compare RUN ...")
    from offramp.reports import compare as put_side_by_side
    from offramp.reports import evaluate, side_by_side
    from offramp.reports.terminal import console, passes
    from offramp.storage import write_atomically

    with passes() as progress:

        def measure(run: Path) -> dict[str, object]:
            print(f"Evaluating {run}", file=sys.stderr)
            return evaluate(run, page=False, progress=lambda part, *done: progress(f"{run} {part}", *done)).to_json()

        comparison = put_side_by_side(runs, measure=measure, note=lambda text: print(text, file=sys.stderr))
    if as_json:
        print(json.dumps(comparison.to_json()))
    else:
        console().print(side_by_side.on_terminal(comparison))
    if out is not None:
        text = side_by_side.html(comparison) if out.endswith(".html") else side_by_side.markdown(comparison)
        write_atomically(Path(out), text.encode())
        print(out, file=sys.stderr if as_json else sys.stdout)
