"""`offramp policy`."""

import json
import sys
from typing import Annotated, Literal

import tyro

from offramp.terminal import escaped, say


def policy(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    latency: float | None = None,
    batch: str | None = None,
    measure: Literal["softmax", "margin", "entropy", "patience"] = "softmax",
    temperature: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    renormalise: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> None:
    """Find thresholds of a finished run for what an image may cost, or for how much accuracy may be lost.

    Give one target: --budget, --max-drop or --latency. Thresholds are found on the search half of the held-out images;
    on other images a target is met on average, not surely: for a promise, use offramp certify. Writes RUN/policy.json.

    Args:
        run: Folder of a finished run that held images out.
        budget: Expected operations per image; up to 1, as a share of the full network's.
        max_drop: Percentage points of accuracy that may be lost against the full network, at the lowest cost.
        latency: Expected milliseconds per image, by what offramp bench measured (RUN/bench.json).
        batch: Batch size whose measured times count, or stream; 1 with --latency if not given. With --max-drop, cost is
            then counted in milliseconds, not in operations.
        measure: How an exit's confidence is read off its logits.
        temperature: Divide each exit's logits by a temperature, the one that fits the search half best.
        renormalise: Confidences of classes that sum to 1, without the damping neuron.
        out: Write the policy to FILE.
        as_json: Print one JSON object, and nothing else, to standard output.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
    """
    from offramp.policy import Measure
    from offramp.reports import find_policy
    from offramp.reports.terminal import console, exit_table, passes

    with passes() as progress:
        found = find_policy(
            run,
            budget=budget,
            max_drop=max_drop,
            latency=latency,
            batch=batch,
            measure=Measure(measure, renormalise=renormalise),
            temperature=temperature,
            out=out,
            root=root,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if found.replaced:
        say(f"The policy in {found.written} had a certificate; this one replaces it and has none.")
    if found.better_exit is not None and max_drop is not None:
        say(
            f"Exit {found.better_exit + 1} alone is right more often than the last one ({found.better_top1:.2f} and "
            f"{found.full_top1:.2f} % of the search images), and max-drop counts from the last: a budget does not."
        )
    if max_drop is not None and found.policy.found["procedure"] == "last exit alone":
        say(
            f"No image leaves early: on the {found.images} images of {found.split} no policy that lets one leave shows "
            f"a drop of at most {max_drop:g} points, two standard errors added. Allow more, or hold out more images."
        )
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        where = f"{found.images} of {found.split}"
        remark = f"On the search images ({where}), where the thresholds were found: a description, no promise."
        console().print(exit_table(found, remark))
    print(escaped(found.written), file=sys.stderr if as_json else sys.stdout)
