"""`offramp evaluate`."""

import json
import sys
from typing import Annotated, Literal

import tyro

from offramp.terminal import escaped, say


def evaluate(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    plots: Literal["svg", "png"] | None = None,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    device: str = "auto",
    batch_size: int | None = None,
    train_limit: int = 10_000,
    renormalise: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Measure every exit of a finished run on its test set: accuracy, cost, likelihood, calibration, damping.

    Writes RUN/evaluation.json and RUN/report.html. Logits are kept in RUN/records and used again.

    Args:
        run: Folder of a finished run.
        as_json: Print one JSON object, and nothing else, to standard output.
        plots: Also write the plots as files of this kind, to RUN/plots.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
        train_limit: Training images, evenly spread, on which the exits are measured too; 0 for none.
        renormalise: Likelihood and calibration of classes that sum to 1, without the damping neuron.
    """
    from offramp.reports import evaluate as measure
    from offramp.reports.figures import HOW_TO_GET_IT, available
    from offramp.reports.terminal import console, passes, run_table

    with passes() as progress:
        evaluation = measure(
            run,
            root=root,
            device=device,
            batch_size=batch_size,
            train_limit=train_limit,
            renormalise=renormalise,
            plots=plots,
            progress=progress,
        )
    if as_json:
        print(json.dumps(evaluation.to_json()))
    else:
        console().print(run_table(evaluation))
    for path in evaluation.written:
        print(escaped(path), file=sys.stderr if as_json else sys.stdout)
    if not available():
        say(f"No {evaluation.run.report.name}: {HOW_TO_GET_IT}")
