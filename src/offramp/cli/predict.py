"""`offramp predict`."""

import contextlib
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, fields
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from offramp.cli.before_torch import before_torch
from offramp.errors import OfframpError, UsageError
from offramp.terminal import escaped, say

if TYPE_CHECKING:
    from rich.table import Table

    from offramp.reports import Prediction, Predictions

PAGE = 1000  # rows of one table
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how it may begin, for a spreadsheet


def predict(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE")],
    *,
    policy: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    format: Literal["table", "csv", "jsonl"] = "table",
    batch_size: Annotated[int, tyro.conf.arg(aliases=["--batch"])] = 64,
    max_megapixels: float = 100,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    device: str = "auto",
) -> None:
    """Say what is in image files: class, exit taken, confidence, and operations spent.

    Operations are in units of running straight to the last exit and asking no other.

    Where offramp bench measured this policy on this machine, images are run in the way that was fastest.

    Files that cannot be read are named on standard error and passed over; the status is then 1.

    Args:
        run: Folder of a finished run.
        images: Image files (JPEG, PNG, WebP), and folders, which are searched recursively.
        policy: Thresholds, as `offramp policy` and `offramp certify` write them. Default: RUN/policy.json; without one
            the last exit answers every image.
        format: table for people, csv with a header, jsonl: one JSON object a line. The latter two come line by line.
        batch_size: Images read before the network goes on.
        max_megapixels: Million pixels that an image may have; one that has more is not decoded.
        root: Folder that holds the data set's files; asked for only by runs that have no input.json.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
    """
    if not images:
        raise UsageError("Name at least one image or folder: offramp predict RUN IMAGE ...")
    before_torch()
    from offramp.reports import Prediction
    from offramp.reports import predict as predict_files
    from offramp.runs import RunFolder

    folder = RunFolder(run)
    predictions = predict_files(
        run,
        images,
        policy=policy,
        root=root,
        device=device,
        batch_size=batch_size,
        max_megapixels=max_megapixels,
        on_unreadable=say,
    )
    if predictions.policy is None and len(predictions.exits_K) > 1:
        say(
            f"{run} has no policy.json: the last exit answers every image. `{folder.command('policy')}` or "
            f"`{folder.command('certify')}` finds thresholds."
        )
    if predictions.differs:
        say(f"{run}/bench.json is not used ({'; '.join(predictions.differs)}). `{folder.command('bench')}` tunes anew.")
    if format == "table":
        _print_tables(predictions)
    elif format == "csv":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # names need not be UTF-8: their bytes come out again
        print(_csv(field.name for field in fields(Prediction)), end="")
        _print_lines(predictions, lambda one: _csv(astuple(one)))
    else:
        _print_lines(predictions, lambda one: json.dumps(asdict(one)) + "\n")
    _sum_up(predictions)


def _print_tables(predictions: "Predictions") -> None:
    """A table at the end; where there are many images, one for every `PAGE` of them."""
    from offramp.reports.terminal import console, passes

    page: list[Prediction] = []
    while True:
        with passes() as predictions.progress:
            page = list(itertools.islice(predictions, PAGE))
        if page:
            console().print(_table(page))
        if len(page) < PAGE:
            return


def _table(page: "list[Prediction]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    for name in ("exit", "confidence", "operations"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in page:  # Text: a name in brackets is no markup
        numbers = str(one.exit), f"{one.confidence:.4f}", f"{one.operations:.1%}"
        table.add_row(Text(escaped(one.file)), Text(escaped(one.class_name)), *numbers)
    return table


def _print_lines(predictions: "Predictions", line: "Callable[[Prediction], str]") -> None:
    """Line by line, each as soon as it is there. In a terminal they are progress enough, else there is a bar."""
    from offramp.reports.terminal import passes

    out = sys.stdout  # as it is now: a bar on standard error takes over what `print` finds
    with contextlib.nullcontext(None) if out.isatty() else passes() as predictions.progress:
        for one in predictions:
            out.write(line(one))
            out.flush()


def _csv(values: Iterable[object]) -> str:
    """A row as RFC 4180 has it, with its end. Text that a spreadsheet would take for a formula begins with `'`."""
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\r\n").writerow(
        f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value for value in values
    )
    return written.getvalue()


def _sum_up(predictions: "Predictions") -> None:
    """One line on standard error; files that could not be read are an error."""
    answered, total = sum(predictions.exits_K), len(predictions.files)
    if not answered:
        raise OfframpError(f"None of {total:,} files could be read." if total > 1 else "The file could not be read.")
    images = f"{answered:,} {'image' if answered == 1 else 'images'}"
    under = "" if predictions.policy_file is None else f" under {predictions.policy_file}"
    if predictions.tuned:
        under += f", tuned by bench.json (asks exits {', '.join(map(str, predictions.asks))})"
    exits = ", ".join(f"{count / answered:.1%} at exit {k}" for k, count in enumerate(predictions.exits_K, 1))
    operations = f"{predictions.mean_operations:.1%} of the operations of running straight to the last exit, on average"
    say(f"{images}{under}: {exits}; {operations}.")
    if predictions.unreadable:
        raise OfframpError(f"{predictions.unreadable:,} of {total:,} files could not be read.")
