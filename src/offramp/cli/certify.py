"""`offramp certify`."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from offramp.reports import Certified


def certify(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    risk: float = 0.01,
    confidence: float = 0.95,
    loss: Literal["regret", "early-error", "drop"] = "regret",
    per_class: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    measure: Literal["softmax", "margin", "entropy", "patience"] = "softmax",
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> None:
    """Find the cheapest thresholds of a finished run that keep a promise, with proof from images nothing else touched.

    With probability CONFIDENCE over the draw of the certify images, the risk is at most RISK. Writes RUN/policy.json.

    Args:
        run: Folder of a finished run that held images out.
        risk: What the risk is to be at most, between 0 and 1.
        confidence: How sure the promise is to be, between 0 and 1.
        loss: regret: share of images that leave early with a wrong answer though the full network is right;
            early-error: share of wrong answers among images that leave early; drop: accuracy lost.
        per_class: Promise it for the images of each class.
        measure: How an exit's confidence is read off its logits.
        out: Write the policy to FILE.
        as_json: Print one JSON object, and nothing else, to standard output.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
    """
    from offramp.policy import Measure
    from offramp.reports import certify as certify_run
    from offramp.reports.terminal import passes

    with passes() as progress:
        certified = certify_run(
            run,
            risk=risk,
            confidence=confidence,
            loss=loss,
            per_class=per_class,
            measure=Measure(measure),
            out=out,
            root=root,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        values = asdict(certified) | {"written": str(certified.written)}
        print(json.dumps(values))
    else:
        _print_table(certified)
    print(certified.written, file=sys.stderr if as_json else sys.stdout)


def _print_table(certified: "Certified") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from offramp.policy import EVERYBODY, NOBODY
    from offramp.reports.terminal import console

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("exit", "leaves from", "images", "top-1 %", "last exit on them %"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, exit in enumerate(certified.exits, 1):
        threshold = {NOBODY: "nobody", EVERYBODY: "all"}.get(exit.threshold, f"{exit.threshold:.4f}")
        accuracies = ("-" if value is None else f"{value:.2f}" for value in (exit.top1, exit.full_top1))
        table.add_row(str(k), threshold, f"{exit.share:.1%}", *accuracies)
    out = console()
    out.print(table)
    out.print(f"{certified.certificate}")
    share = certified.operations / certified.full_operations
    out.print(f"Operations per image: {certified.operations:,.0f}, {share:.1%} of the full network.")
