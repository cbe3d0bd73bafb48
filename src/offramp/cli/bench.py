"""`offramp bench`."""

import json
import sys
from typing import Annotated, Literal

import tyro

from offramp.cli.before_torch import before_torch
from offramp.errors import OfframpError
from offramp.terminal import escaped, say


def bench(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    policy: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    max_drop: float | None = None,
    batches: tuple[int, ...] = (1, 32, 256),
    limit: int | None = None,
    rounds: int = 15,
    seconds: float = 140,
    threads: int | None = None,
    bf16: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    backend: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto",
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    plots: Literal["svg", "png"] | None = None,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> None:
    """Measure on this machine how much time early exits save, beside how many operations, and where the rest goes.

    The engine takes turns with the network run straight to its last exit and with the network cut at each exit, on the
    same test images: one at a time, in batches, in a stream. Writes RUN/bench.json. Let nothing else run meanwhile.

    On a CPU oneDNN is told to keep 16,384 kernels, as in offramp predict: it usually keeps 1,024, and variants that
    take turns would throw out each other's. Programs of your own get that by ONEDNN_PRIMITIVE_CACHE_CAPACITY=16384.

    Args:
        run: Folder of a finished run.
        policy: Thresholds, as offramp policy and offramp certify write them. Default: RUN/policy.json; without one they
            are found as with --max-drop.
        max_drop: Find thresholds that lose at most so many percentage points of accuracy; 0.2 where there are none and
            it is not given.
        batches: Sizes of batches to measure, beside a stream.
        limit: Images timed in a round, at most (but one whole batch). Never more than 100 one at a time, 256 in
            batches, 4,096 in a stream, of large images fewer (512 MB).
        rounds: How many times each variant takes its turn, at least 5.
        seconds: About how long it may take, setting libraries up aside: rounds have as many images as fit.
        threads: CPU threads of torch.
        bf16: Try bfloat16 too, for the engine and what it is compared with.
        backend: What may run the network; auto tries all that are installed.
        out: Write to FILE instead of RUN/bench.json, which offramp policy reads.
        as_json: Print one JSON object, and nothing else, to standard output.
        plots: Draw accuracy against operations and against time as files of this kind, to RUN/plots.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass for the logits, below the run's own batch size.
    """
    before_torch()
    from offramp.reports import bench as measure
    from offramp.reports.bench_table import bench_table
    from offramp.reports.terminal import console, countdown, passes

    measured = measure(
        run,
        policy=policy,
        max_drop=max_drop,
        batches=batches,
        limit=limit,
        rounds=rounds,
        seconds=seconds,
        threads=threads,
        bf16=bf16,
        backend=backend,
        out=out,
        plots=plots,
        root=root,
        device=device,
        batch_size=batch_size,
        bars=passes,
        countdown=countdown,
        note=say,
    )
    if as_json:
        print(json.dumps(measured.to_json()))
    else:
        console().print(bench_table(measured))
    for path in measured.written:
        print(escaped(path), file=sys.stderr if as_json else sys.stdout)
    if measured.wrong:
        where = ", ".join(f"{count:,} in {name}" for name, count in measured.wrong.items())
        raise OfframpError(f"The engine's answers are not all the policy's ({where}): its times are worth nothing.")
