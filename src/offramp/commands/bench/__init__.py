"""`offramp bench`: do early exits really skip work on this machine, and where does the time go?"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from offramp.checks import ABOVE_0, whole
from offramp.choices import Plots
from offramp.commands.options import AnyBackend, ByHand, File, Flag, PlotFiles, RecordsLogits, in_threads, target
from offramp.config import unset
from offramp.errors import OfframpError, UsageError
from offramp.json_files import encoded
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.storage import write_files

if TYPE_CHECKING:
    from offramp.commands.bench.measuring import Subject
    from offramp.policy import Policy
    from offramp.results.bench import Bench

MAX_DROP = 0.2  # percentage points; of the policy that is found where the run has none
ROUNDS = 15
LEAST_ROUNDS = 5  # of which the lowest and the highest are a 90 % interval


@dataclass(frozen=True, kw_only=True)
class BenchOptions(RecordsLogits):
    """Measure how much time early exits save on this machine.

    Beside it how many operations they save, and where the rest of the time goes.

    The engine takes turns with the network run straight to its last exit and with the network cut at each exit, on the
    same test images: one at a time, in batches, in a stream. Writes RUN/bench.json. Let nothing else run meanwhile.

    On a CPU oneDNN keeps 16,384 kernels, as in offramp predict. Its default is 1,024, and variants that
    take turns would throw out each other's. Programs of your own get that by ONEDNN_PRIMITIVE_CACHE_CAPACITY=16384.
    """

    policy: File = None
    """Thresholds, as offramp policy and offramp certify write them.
    Default: RUN/policy.json; without one they are found as with --max-drop."""
    max_drop: Annotated[float | None, unset("POINTS")] = None
    """Find thresholds that lose at most so many percentage points of accuracy;
    0.2 where there are none and it is not given."""
    batches: Annotated[tuple[int, ...], whole(1)] = (1, 32, 256)
    """Sizes of batches to measure, beside a stream."""
    limit: Annotated[int | None, whole(1), unset("INT")] = None
    """Images timed in a round, at most (but one whole batch).
    Never more than 100 one at a time, 256 in batches, 4,096 in a stream, of large images fewer (512 MB)."""
    rounds: Annotated[int, whole(LEAST_ROUNDS)] = ROUNDS
    """How many times each variant takes its turn, at least 5."""
    seconds: Annotated[float, ABOVE_0] = 140
    """About how long it may take, a fifth of it for tuning; reading data and setting libraries up aside.
    Rounds have as many images as fit."""
    bf16: Flag = False
    """Try bfloat16 too, for the engine and what it is compared with."""
    backend: AnyBackend = "auto"
    """What may run the network; auto tries all that are installed.
    Under a policy that was certified in int8 or bf16, only the form that it was certified in."""
    out: File = None
    """Write to FILE instead of RUN/bench.json, which offramp policy reads."""
    plots: PlotFiles = None
    """Draw accuracy against operations and against time as files of this kind, to RUN/plots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one(self.policy, self.max_drop)
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise UsageError(f"batches must be one size or more, each once, not {list(self.batches)}.")

    def main(self) -> None:
        measured = bench(self, watch=IN_TERMINAL)
        from offramp.show.bench.table import bench_table

        print_result(measured.to_json, lambda: bench_table(measured), measured.written, as_json=self.json)
        if measured.wrong:
            where = ", ".join(f"{count:,} in {name}" for name, count in measured.wrong.items())
            raise OfframpError(f"The engine's answers are not all the policy's ({where}): its timings are not valid.")


@in_threads
def bench(
    options: BenchOptions, *, policy: "Policy | None" = None, watch: Watch = QUIET, **by_hand: Unpack[ByHand]
) -> "Bench":
    """Measure what a run's early exits save in time, beside what they save in operations.

    The engine, tuned on `search`, takes turns with the network run straight to its last exit, and with the network cut
    at each exit, all in one process and on the same test images. Written is `bench.json` in the run's folder, which
    `find_policy` reads for latencies. Where answers are not the policy's, `Bench.wrong` counts them. A network with one
    exit, a run without held-out images and without a policy, a form that the policy's certificate is not of, and a file
    that cannot be written are refused before anything is measured.
    """
    from offramp.commands.bench.measuring import Timing, measured, subject
    from offramp.commands.open_run import OpenRun
    from offramp.commands.policy_files import given_policy
    from offramp.devices import device_named
    from offramp.evaluation.targets import check_target
    from offramp.runtime.timing import conditions
    from offramp.show import figures

    _check_one(policy, options.max_drop)
    measured_on = conditions(device_named(options.device))  # before the machine is busy with us
    if options.plots is not None:
        figures.require()
    run = OpenRun(options, **by_hand)
    out, file = target(options.out, run.folder.bench), None
    if options.max_drop is None:
        policy, file = given_policy(policy or options.policy, run.folder)
    else:
        check_target(run.cost, max_drop=options.max_drop)
    timed = subject(
        run,
        policy,
        file,
        max_drop=MAX_DROP if options.max_drop is None else options.max_drop,
        device=options.device,
        backend=options.backend,
        bf16=options.bf16,
        curve=options.plots is not None,
        watch=watch,
    )
    result = measured(
        timed, Timing(options.batches, options.limit, options.rounds, options.seconds), watch, measured_on
    )
    plots = {} if options.plots is None else _drawn(result, timed, options.plots)
    return dataclasses.replace(result, written=write_files({out: encoded(result.to_json()), **plots}))


def _drawn(result: "Bench", timed: "Subject", kind: Plots) -> dict[Path, bytes]:
    """Plots by the files that they go to."""
    from offramp.show.bench.plots import drawn

    contents = drawn(result, timed.search, timed.test, timed.run.cost, kind)
    return {timed.run.folder.plots / f"{name}.{kind}": content for name, content in contents.items()}


def _check_one(policy: "str | Path | Policy | None", max_drop: float | None) -> None:
    if policy is not None and max_drop is not None:
        raise UsageError("Give a policy or max_drop, for which one is found, not both.")
