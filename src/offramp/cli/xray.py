"""`offramp xray`."""

import json
import sys
from typing import Annotated

import tyro

from offramp.terminal import escaped, say


def xray(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
) -> None:
    """See which gradients a training needed: those of the images that it watched (offramp train --xray 256).

    Of each exit over time: which gradients are needed, damped or reversed, where the push comes from, what was learned
    when, with pictures; and whether the damping value knows wrong answers on test. Writes RUN/xray.html. A run that is
    not finished is shown as far as it is.

    Args:
        run: Folder of a run.
        as_json: Print one JSON object, and nothing else, to standard output.
        root: Folder that holds the data set's files, if it is not where it was in training.
    """
    from offramp.reports import xray as look
    from offramp.reports.figures import HOW_TO_GET_IT, available
    from offramp.reports.terminal import console, xray_table

    report = look(run, root=root)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        console().print(xray_table(report))
        if report.no_telling is not None:
            print(escaped(f"The damping value against correctness on test: {report.no_telling}"))
    for path in report.written:
        print(escaped(path), file=sys.stderr if as_json else sys.stdout)
    if not available():
        say(f"No xray.html: {HOW_TO_GET_IT}")
