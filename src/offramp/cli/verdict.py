"""`offramp verdict`."""

import json
import sys
from typing import Annotated, Literal

import tyro

from offramp.cli.before_torch import before_torch
from offramp.terminal import escaped, say


def verdict(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    policy: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    exits: tuple[int, ...] | None = None,
    no_train: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    runs: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    seeds: int = 1,
    batch_size: int = 1,
    images: int | None = None,
    rounds: int = 15,
    seconds: float = 60.0,
    least_gain: float = 0.0,
    backend: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto",
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    device: str = "auto",
) -> None:
    """Is early exit worth it here? The engine against the best single smaller network of the same time per image.

    Smaller networks are this one cut at each exit, and networks up to each exit trained with that exit alone, as the
    run was trained: runs of their own, trained first, continued where they were interrupted. Says yes, no or not
    resolved, from intervals over test images and rounds of timing. Writes RUN/verdict.json and RUN/verdict.html. Let
    nothing else run meanwhile.

    Args:
        run: Folder of a finished run that held images out.
        policy: Compare this policy too. Default: RUN/policy.json, or one found to lose at most 0.2 points. For the time
            of each exit a policy is found anyway.
        exits: Train the smaller networks of these exits only, from 1; by default of all.
        no_train: Train nothing: compare with what is there. The page says what is missing.
        runs: Folder of the smaller networks' runs. Default: RUN/verdict.
        seeds: Train each smaller network so many times, from the run's seed on, and take the mean. The run itself stays
            one training.
        batch_size: Images answered at a time.
        images: Images timed in a round, at most. Default: 100 one at a time, 256 in batches.
        rounds: How many times each contender takes its turn, at least 5.
        seconds: About how long engines are tuned, all together.
        least_gain: Percentage points that early exits have to gain to be worth it.
        backend: What may run the networks; auto tries all that are installed.
        as_json: Print one JSON object, and nothing else, to standard output.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
    """
    before_torch()
    from offramp.reports import verdict as judge
    from offramp.reports.figures import HOW_TO_GET_IT, available
    from offramp.reports.terminal import console, passes
    from offramp.reports.verdict_table import verdict_table

    found = judge(
        run,
        policy=policy,
        exits=exits,
        train=not no_train,
        runs=runs,
        seeds=seeds,
        batch_size=batch_size,
        images=images,
        rounds=rounds,
        seconds=seconds,
        least_gain=least_gain,
        backend=backend,
        root=root,
        device=device,
        bars=passes,
        note=say,
    )
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        console().print(verdict_table(found))
    for path in found.written:
        print(escaped(path), file=sys.stderr if as_json else sys.stdout)
    if not available():
        say(f"No verdict.html: {HOW_TO_GET_IT}")
