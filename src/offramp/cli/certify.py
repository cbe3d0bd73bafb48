"""`offramp certify`."""

import json
import sys
from typing import Annotated, Literal

import tyro

from offramp.terminal import escaped, say


def certify(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    risk: float = 0.01,
    confidence: float = 0.95,
    loss: Literal["regret", "early-error", "drop"] = "regret",
    per_class: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    measure: Literal["softmax", "margin", "entropy", "patience"] = "softmax",
    backend: Literal["torch", "onnxruntime", "openvino"] = "torch",
    precision: Literal["float32", "bf16"] = "float32",
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
        backend: What runs the network on the images.
        precision: In which precision. In bf16 the promise is of what this backend answers in bf16, and it is run so.
        out: Write the policy to FILE.
        as_json: Print one JSON object, and nothing else, to standard output.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
    """
    from offramp.policy import Measure
    from offramp.reports import certify as certify_run
    from offramp.reports.terminal import console, exit_table, passes

    with passes() as progress:
        certified = certify_run(
            run,
            risk=risk,
            confidence=confidence,
            loss=loss,
            per_class=per_class,
            measure=Measure(measure),
            backend=backend,
            precision=precision,
            out=out,
            root=root,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if certified.certificate is not None and certified.certificate.earlier:
        number = certified.certificate.earlier + 1
        say(
            f"These images have certified before (this is certificate {number} at least): whoever makes several and "
            f"keeps one has to divide 1 - confidence among them, here by {number}."
        )
    if as_json:
        print(json.dumps(certified.to_json()))
    else:
        console().print(exit_table(certified, str(certified.certificate)))
    print(escaped(certified.written), file=sys.stderr if as_json else sys.stdout)
