"""`offramp predict`: the class of any image file, from as early an exit as the policy of a run lets it leave."""

import contextlib
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from offramp.checks import whole
from offramp.commands.options import File, OnDevice, in_threads, several
from offramp.config import unset
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.results.prediction import Prediction
from offramp.show.terminal import console, passes
from offramp.terminal import say, say_error

if TYPE_CHECKING:
    from offramp.commands.predictions import Predictions
    from offramp.data import Inputs
    from offramp.network import EarlyExitNet
    from offramp.policy import Policy

PAGE = 1000  # rows of one table
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how it may begin, for a spreadsheet


@dataclass(frozen=True, kw_only=True)
class PredictOptions(OnDevice):
    """Classify image files, with the exit that answered each.

    Class, exit taken, confidence, and operations spent.

    Operations are a share of the whole network's with every exit, as in offramp policy, certify and evaluate.

    Where offramp bench measured this policy on this machine, images are run in the way that was fastest.

    Files that cannot be read are named on standard error and passed over; the status is then 1.
    """

    images: Annotated[tyro.conf.Positional[Sequence[str | Path]], several("IMAGE")] = field(kw_only=False)
    """Image files (JPEG, PNG, WebP), and folders, which are searched recursively."""
    policy: File = None
    """Thresholds, as `offramp policy` and `offramp certify` write them.
    Default: RUN/policy.json; without one the last exit answers every image."""
    format: Literal["table", "csv", "jsonl"] = "table"
    """table for people, csv with a header, jsonl: one JSON object a line. The latter two come line by line."""
    batch_size: Annotated[int, whole(1), tyro.conf.arg(aliases=["--batch"])] = 64
    """Images read before the network goes on."""
    max_megapixels: float = 100
    """Million pixels that an image may have; one that has more is not decoded."""
    root: Annotated[str | None, unset("DIR")] = None
    """Folder that holds the data set's files; asked for only by runs that have no input.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise UsageError("Name at least one image or folder: offramp predict RUN IMAGE ...")

    def main(self) -> None:
        predictions = predict(self, on_unreadable=say_error)
        folder = RunFolder(self.run)
        if predictions.policy is None and len(predictions.exits_K) > 1:
            say(
                f"{self.run} has no policy.json: the last exit answers every image. `{folder.command('policy')}` or "
                f"`{folder.command('certify')}` finds thresholds."
            )
        if predictions.differs:
            why = "; ".join(predictions.differs)
            say(f"{self.run}/bench.json is not used ({why}). `{folder.command('bench')}` tunes anew.")
        if self.json:
            print(json.dumps({"predictions": [asdict(one) for one in predictions], **_summary(predictions)}))
        elif self.format == "table":
            _print_tables(predictions)
        elif self.format == "csv":
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="surrogateescape")  # names need not be UTF-8: their bytes come out again
            print(_csv(field.name for field in fields(Prediction)), end="")
            _print_lines(predictions, lambda one: _csv(astuple(one)))
        else:
            _print_lines(predictions, lambda one: json.dumps(asdict(one)) + "\n")
        _sum_up(predictions)


@in_threads
def predict(
    options: PredictOptions,
    *,
    policy: "Policy | None" = None,
    inputs: "Inputs | None" = None,
    into: "EarlyExitNet | None" = None,
    on_unreadable: Callable[[OfframpError], None] | None = None,
) -> "Predictions":
    """The class of each image file, by a finished run's network that lets images leave early.

    Everything is checked and loaded before this returns; images are read, a batch at a time, as predictions are asked
    for. Where `bench` tuned an engine for this policy on this machine, the engine runs so.

    Args:
        inputs: How a file becomes the network's input, for a run that does not say it.
        on_unreadable: Called with the error of each file that cannot be read, which is then passed over. Without it the
            error is raised, while predictions are made.
    """
    from offramp.commands.image_files import find_images
    from offramp.commands.open_run import inputs_of
    from offramp.commands.policy_files import given_policy
    from offramp.commands.predictions import Predictions
    from offramp.data.inputs import check_megapixels
    from offramp.devices import device_named
    from offramp.files import load
    from offramp.policy import Policy
    from offramp.runtime import Engine
    from offramp.runtime.tuning import adopt_file

    check_megapixels(options.max_megapixels)
    files = find_images(options.images)
    folder = RunFolder(options.run, options.allow_code)
    config = folder.read_config()
    network = load(folder.path, into, allow_code=options.allow_code)
    inputs = inputs or inputs_of(folder, config, options.root)
    inputs.check_network(network, folder.path)
    ready, policy_file = given_policy(policy or options.policy, folder)
    engine = Engine(network, ready or Policy.to_the_end(network.num_exits), device=device_named(options.device))
    is_tuned, differs = adopt_file(engine, folder.bench)
    return Predictions(
        engine,
        inputs,
        files,
        ready,
        policy_file,
        options.batch_size,
        on_unreadable,
        tuned=is_tuned,
        differs=differs,
        max_megapixels=options.max_megapixels,
        threads=options.threads,
    )


def _print_tables(predictions: "Predictions") -> None:
    """A table at the end; where there are many images, one for every `PAGE` of them."""
    from offramp.show.tables import prediction_table

    page: list[Prediction] = []
    while True:
        with passes() as predictions.progress:
            page = list(itertools.islice(predictions, PAGE))
        if page:
            console().print(prediction_table(page))
        if len(page) < PAGE:
            return


def _print_lines(predictions: "Predictions", line: Callable[[Prediction], str]) -> None:
    """Line by line, each as soon as it is there. In a terminal they are progress enough, else there is a bar."""
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


def _summary(predictions: "Predictions") -> dict[str, object]:
    answered = sum(predictions.exits_K)
    return {
        "policy": None if predictions.policy_file is None else str(predictions.policy_file),
        "images": answered,
        "unreadable": predictions.unreadable,
        "exits": predictions.exits_K,
        "operations": predictions.mean_operations if answered else None,
    }


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
    operations = f"{predictions.mean_operations:.1%} of the operations of the full network, on average"
    say(f"{images}{under}: {exits}; {operations}.")
    if predictions.unreadable:
        raise OfframpError(f"{predictions.unreadable:,} of {total:,} files could not be read.")
