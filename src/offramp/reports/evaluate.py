"""A finished run, measured: every exit on the test set, and what thresholds do; JSON, plots, a page in its folder."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from offramp.costs import Cost, cost
from offramp.data import Parts, Split
from offramp.errors import UsageError
from offramp.evaluation import Record, anytime, recorded
from offramp.network import EarlyExitNet
from offramp.policy import Measure
from offramp.reports import figures
from offramp.reports.dynamic import Dynamic, dynamic
from offramp.reports.evaluation import Evaluation
from offramp.reports.loading import Progress, check_trained_on, named, network_of, parts_of
from offramp.reports.report import draw, report
from offramp.reports.sample import Sample
from offramp.reports.sheet import sheet
from offramp.runs import RunFolder
from offramp.storage import write_atomically

TRAIN_LIMIT = 10_000


def evaluate(
    run: str | Path,
    *,
    parts: Parts | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    train_limit: int = TRAIN_LIMIT,
    renormalise: bool = False,
    page: bool = True,
    plots: Literal["svg", "png"] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure every exit of a finished run on its test set, and write what was found into its folder.

    Where images were held out, also what thresholds do: the published curve, searched thresholds, and one policy in
    detail, the run's own (`policy.json`) or one found here.

    Logits are kept in `records/` and used again as long as weights and images are the same. Written are
    `evaluation.json`, `report.html` (where matplotlib is installed) and, on request, `plots/`.

    Args:
        run: The run's folder.
        parts: The data, for a run that was fit from Python with data made by hand.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
        train_limit: Training images, evenly spread, on which the exits are measured too; 0 for none.
        renormalise: Likelihood, calibration, and the confidence of thresholds found here, of classes that sum to 1
            (reading A9(a)), not of the softmax over all outputs with the damping neuron's share left out (A9(b)).
        page: Whether to write `report.html`.
        plots: Also write each plot as a file of this kind.
        progress: Called after each forward pass.

    Raises:
        UsageError: No run, an unfinished one, data that cannot be found again or is not what the run was trained on.
    """
    if train_limit < 0:
        raise UsageError(f"train-limit must be at least 0, not {train_limit}.")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
    if plots is not None:
        figures.require()
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    network = network_of(folder, into, device, "evaluation writes its logits and figures there")
    parts = parts or parts_of(folder, config, root, "offramp.reports.evaluate")
    check_trained_on(parts, folder, config)
    keep = functools.partial(recorded, network, batch_size=batch_size)
    record = keep(parts.test, folder.record("test"), progress=named(progress, "test"))
    train = None
    if train_limit:
        sample, path = Sample(parts.train, train_limit), folder.record("train")
        train = anytime(keep(sample, path, progress=named(progress, "train")), renormalise=renormalise)
    costs = cost(network, parts.test.image_shape)
    why_not = _without_dynamic(parts, config, costs)
    found = None
    if why_not is None:
        search = keep(parts.val.search, folder.record("search"), progress=named(progress, "search"))
        found, why_not = _dynamic(search, record, costs, folder, Measure(renormalise=renormalise))
    evaluation = Evaluation(
        run=folder,
        config=config,
        starts=folder.read_starts(),
        metrics=folder.read_metrics(),
        test=anytime(record, renormalise=renormalise),
        train=train,
        cost=costs,
        dynamic=found,
        no_dynamic=why_not,
        weights=record.weights,
        fingerprint=record.fingerprint,
        made_on=record.made_on,
    )
    return dataclasses.replace(evaluation, written=_write(evaluation, parts.test, page, plots))


def _without_dynamic(parts: Parts, config: dict[str, Any], costs: Cost) -> str | None:
    """Why nothing can be said of thresholds; None where something can."""
    if len(costs.exits) == 1:
        return "The network has one exit, so no image can leave early."
    if not parts.val.splits():
        return "Thresholds are found on held-out images, and with holdout=0 nothing was held out."
    held_before = (config.get("images") or {}).get("search")
    if held_before not in (None, parts.val.search.fingerprint()):
        return "The images held out now are not those that were held out when the run was trained."
    return None


def _dynamic(
    search: Record, test: Record, costs: Cost, folder: RunFolder, measure: Measure
) -> tuple[Dynamic | None, str | None]:
    try:
        return dynamic(search, test, costs, folder.policy, measure), None
    except UsageError as error:  # parts of one's own may have names by which nobody knows what they are for
        return None, str(error)


def _write(evaluation: Evaluation, test: Split, page: bool, plots: Literal["svg", "png"] | None) -> tuple[Path, ...]:
    folder = evaluation.run
    files = {folder.evaluation: (json.dumps(evaluation.to_json(), indent=1) + "\n").encode()}
    page = page and figures.available()
    if page or plots is not None:
        with figures.style():
            drawn = draw(evaluation)
            if page:
                images = None if evaluation.dynamic is None else sheet(evaluation.dynamic.picked, test)
                files[folder.report] = report(evaluation, drawn, images).encode()
            if plots is not None:
                for name, figure in drawn.items():
                    files[folder.plots / f"{name}.{plots}"] = figures.render(figure, plots, name)
    for path, content in files.items():
        write_atomically(path, content)
    return tuple(files)
