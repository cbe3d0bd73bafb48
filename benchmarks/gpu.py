"""Training on a GPU: steps in every form, end to end with the data path there, five seeds side by side, a profile.

    python benchmarks/gpu.py [--device cuda] [--networks NAME ...] [--forms NAME ...] [--skip PART ...]
        [--rounds 15] [--threads 1] [--quick] [--out FILE]

Without a GPU it says so in one line, and is done; `--device cpu --quick` runs it small, to try the script itself.

Steps: forward, sum of cross-entropies, backward, SGD on a random batch that is there already, channels last; float32
multiplied in TF32, convolutions tried by cuDNN (`cudnn.benchmark`), kernels not deterministic. Rows count images a
second. One form at a time is there, in one precision, and takes turns with plain in float32 and with a product of large
matrices, the device's peak: the best of a turn's, warm, into memory that is there. Then all its memory is given back. A
form that fails, at whatever moment, has a row that says why. What is measured so far is written after each form, to
--out and to standard error: a run that is stopped has lost the form that it was at. Compiling takes minutes a form;
`--forms plain` leaves that out, and `--skip` takes `steps`, `seeds` and `profile`.

End to end: `offramp.fit` on random images of CIFAR's size, objective dynamic, form compiled, bf16, kernels not
deterministic; images are cut out of pixels on the device. Its epochs end as always (checkpoint, metrics). Five such
processes, with seeds of their own, are told to take as many steps at the same time as one takes alone. They take turns
on a GPU, unless NVIDIA's MPS (`nvidia-cuda-mps-control -d`, before this) lets their kernels run at the same time.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from profiling import profiled, shares, wait_for
from torch._C._autograd import DeviceType
from two_processes import Paced, Run

import offramp
from data import random_images
from offramp import backbones, objectives
from offramp.config import Spec, TrainConfig
from offramp.costs import cost
from offramp.data import Batch, HeldOut
from offramp.devices import device_named
from offramp.errors import OfframpError
from offramp.files import RunFolder
from offramp.network import EarlyExitNet
from offramp.rules import Outcome, Standard, Workbench
from offramp.runtime.timing import conditions, ratio, take_turns
from offramp.training.form import Compiled
from offramp.training.job import Job
from offramp.training.loop import Loop
from offramp.training.monitor import Placement

SEEDS, WITHIN = 5, 2.5
WARMUP = 2
PRECISIONS = ("float32", "bf16")
PARTS = ("steps", "seeds", "profile")
FAILURES = (
    OfframpError,
    RuntimeError,
)  # of forms: what cannot be compiled, memory that is not there


class Case(NamedTuple):
    """A network, what it sees, and the images a second that are wanted."""

    network: str
    num_classes: int
    image_shape: tuple[int, int, int]
    batch: int
    goal: float | None


CASES = {
    "MSDNet-7": Case("msdnet7-cifar100", 100, (3, 32, 32), 64, 10_000),
    "RANet-6": Case("ranet6-cifar100", 100, (3, 32, 32), 64, None),
    "MSDNet-5 at 224": Case("msdnet5-imagenet", 1000, (3, 224, 224), 128, 4_000),
}
SMALL = {"small MSDNet": Case("auto", 10, (1, 16, 16), 8, None)}


class Size(NamedTuple):
    """How much is measured."""

    cases: dict[str, Case]
    forms: tuple[str, ...]  # the first is what the others are compared with
    steps: int  # in a row between two looks at the clock
    images: int  # of an epoch, end to end
    side: int  # of the matrices whose product is the peak
    seeds: int


ON_GPU = Size(CASES, ("plain", "compiled", "reduce-overhead"), 20, 50_000, 8192, SEEDS)
ON_CPU = Size(SMALL, ("plain", "traced"), 1, 24, 256, 2)


def clocked(work: Callable[[], object], steps: int, device: torch.device) -> Callable[[], float]:
    """A function that does `work` so many times and returns the seconds of one."""

    def go() -> float:
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            work()
        wait_for(device)
        return (time.perf_counter() - start) / steps

    return go


def built(case: Case, device: torch.device) -> EarlyExitNet:
    """The network, as `offramp.fit` places it."""
    torch.manual_seed(0)
    network = backbones.build(
        Spec(case.network), num_classes=case.num_classes, image_shape=case.image_shape, damping=True
    )
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.train()


def bench_of(case: Case, form: str, precision: str, device: torch.device, objective: str) -> Workbench:
    """Network, form and optimiser, as `offramp.fit` makes them."""
    network = built(case, device)
    forward: Callable[[torch.Tensor], torch.Tensor] = network
    if form == "reduce-overhead":  # not a form of offramp's
        forward = torch.compile(network, mode=form, dynamic=False)
    elif form == "traced":  # in the place of compiled where the script is tried: nothing is compiled
        forward = torch.compile(network, dynamic=False, backend="eager")
    elif form == "compiled":
        forward = Compiled(network, case.batch, print)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    return Workbench(network, forward, objectives.build(Spec(objective)), optimizer, precision)  # type: ignore[arg-type]


def step_of(case: Case, form: str, precision: str, device: torch.device, steps: int) -> Callable[[], float]:
    """A function that trains for some steps on one batch and returns the seconds of one step; it has run already."""
    images_BCHW = torch.randn(case.batch, *case.image_shape, device=device).to(memory_format=torch.channels_last)
    targets_B = torch.randint(case.num_classes, (case.batch,), device=device)
    batch = Batch(images_BCHW, targets_B, torch.arange(case.batch), case.batch)
    rule = Standard()
    rule.prepare(bench_of(case, form, precision, device, "cross-entropy"))
    clocked(lambda: rule.step(batch, 0.0), 3, device)()  # compiles
    return clocked(lambda: rule.step(batch, 0.0), steps, device)


def product(precision: str, device: torch.device, size: Size) -> Callable[[], float]:
    """The seconds of a product of matrices, into memory that is there: the best of some."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right, out = torch.randn(3, size.side, size.side, device=device).to(dtype)
    once = clocked(lambda: torch.mm(left, right, out=out), 1, device)
    return lambda: min(once() for _ in range(size.steps + 1))


def goal_of(case: Case) -> str:
    return "none" if case.goal is None else f"at least {case.goal:,} images a second"


def form_of(
    name: str, case: Case, form: str, precision: str, size: Size, rounds: int, device: torch.device
) -> tuple[list[rows.Row], dict[str, Any]]:
    """The row of a form in a precision, and the figures behind it."""
    label, goal = f"{name}, {form}, {precision}", goal_of(case)
    first = size.forms[0], "float32"
    try:
        turns = {"peak": product(precision, device, size), "it": step_of(case, form, precision, device, size.steps)}
        if (form, precision) != first:
            turns["plain"] = step_of(case, *first, device, size.steps)
        seconds = take_turns(turns, rounds, WARMUP)
    except FAILURES as error:
        why = str(error).partition("\n")[0]
        return [{"name": label, "unit": "images/s", "value": None, "goal": goal, "met": False, "why": why}], {}
    operations = 6 * cost(built(case, torch.device("cpu"))).exits[-1].multiply_adds * case.batch  # see training_step.py
    rate = 2 * size.side**3 / min(seconds["peak"])
    a_second = [case.batch / s for s in seconds["it"]]
    figures = {
        "images a second": rows.spread(a_second),
        "peak, trillion operations a second": round(rate / 1e12, 2),
        "share of peak": round(operations / median(seconds["it"]) / rate, 4),
    }
    if "plain" in seconds:
        figures["times as fast as plain, float32"] = ratio(seconds["plain"], seconds["it"])
    return [rows.value(label, "images/s", a_second, goal, above=case.goal or 0.0)], {label: figures}


def give_back(device: torch.device) -> None:
    """The memory of what nobody needs any more: networks, what was compiled."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PacedThere(Paced):
    """Its clock is read when the device is done."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        if self.left == 0:
            wait_for(self.bench.broken.device)
        return super().step(batch, progress)


def seed(folder: str, number: str, name: str, threads: str, steps: str) -> None:
    """In a process of its own: a run of `offramp.fit` that goes on when it is told to."""
    _, form, size = there(name)
    case = next(iter(size.cases.values()))
    train = random_images(size.images, case.image_shape, case.num_classes, case.batch).train
    config = TrainConfig(
        epochs=int(steps) // train.num_batches + 2,
        seed=int(number),
        precision="bf16",
        channels_last=True,
        form=form,  # type: ignore[arg-type]
        deterministic=False,
        device=name,
        threads=int(threads),
    )
    network = built(case, torch.device("cpu"))
    offramp.fit(network, objectives.dynamic(), train, None, config, out=folder, rule=PacedThere())


class Seed(Run):
    """A process with `seed`."""

    def __init__(self, folder: Path, number: int, device: torch.device, steps: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "seed", *map(str, (folder, number, device, torch.get_num_threads(), steps))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def side_by_side(size: Size, rounds: int, device: torch.device) -> tuple[list[rows.Row], dict[str, Any]]:
    """What `offramp.fit` reaches alone, and how much longer several seeds take together than one."""
    case = next(iter(size.cases.values()))
    steps = 10 * size.steps if device.type == "cuda" else size.steps
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        runs = [Seed(Path(name, str(i)), i, device, 2 * (rounds + WARMUP) * steps) for i in range(size.seeds)]
        for run in runs:
            stack.callback(run.stop)

        def turn(some: list[Seed]) -> Callable[[], float]:
            def go() -> float:
                for run in some:
                    run.go(steps)
                return max(run.seconds() for run in some)

            return go

        seconds = take_turns({"one": turn(runs[:1]), "all": turn(runs)}, rounds, WARMUP)
    a_second = [steps * case.batch / s for s in seconds["one"]]
    about = f"{size.seeds} seeds side by side / one"
    within = WITHIN if size.seeds == SEEDS else None
    goal = "none" if within is None else f"at most {within:g}"
    return [
        rows.value("fit, data path included", "images/s", a_second, goal_of(case), above=case.goal or 0.0),
        rows.paired(about, "", seconds["all"], seconds["one"], goal, at_most=within),
    ], {
        "fit, images a second": rows.spread(a_second),
        "CUDA_MPS_PIPE_DIRECTORY": os.environ.get("CUDA_MPS_PIPE_DIRECTORY"),
    }


def whole_steps(case: Case, form: str, device: torch.device, folder: str) -> Iterator[None]:
    """Steps of the training loop, data path included, one each time it is asked."""
    bench, rule = bench_of(case, form, "bf16", device, "dynamic"), Standard()
    rule.prepare(bench)
    train = random_images(20 * case.batch, case.image_shape, case.num_classes, case.batch).train
    place = Placement(device, channels_last=True)
    job = Job(bench.network, bench.objective, train, HeldOut(), TrainConfig(epochs=1), rule)
    loop = Loop(RunFolder(folder), job, bench, place)
    for number, batch in enumerate(loop.train.batches()):
        images_BCHW, targets_B = place(batch.images_BCHW, batch.targets_B)
        loop._one_step(batch._replace(images_BCHW=images_BCHW, targets_B=targets_B), number)
        yield


def summary(case: Case, form: str, device: torch.device) -> dict[str, Any]:
    """What a step of the training loop asks of the device, and where it waits for it."""
    with tempfile.TemporaryDirectory() as folder:
        steps = whole_steps(case, form, device, folder)
        for _ in range(5):
            next(steps)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with waiting_is_told(device):
                next(steps)
        seen = profiled(lambda: next(steps), device)
    kernels = [
        e for e in seen.events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
    ]
    return {
        "operators asked for": sum(e.name.startswith("aten::") for e in seen.events),
        "launches": sum("LaunchKernel" in e.name or "GraphLaunch" in e.name for e in seen.events),
        "kernels and copies": len(kernels),
        "milliseconds on the device": round(sum(e.time_range.elapsed_us() for e in kernels) / 1000, 3),
        "milliseconds, profiled": round(1000 * seen.seconds, 3),
        "shares by kind of operator": {kind: round(share, 3) for kind, share in shares(seen, device).items()},
        "waits for the device": [f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroniz" in str(w.message)],
    }


def profiles(case: Case, forms: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """`summary` of each form."""
    return {form: summary(case, form, device) for form in dict.fromkeys(forms)}


@contextlib.contextmanager
def waiting_is_told(device: torch.device) -> Iterator[None]:
    """Where torch notices that the device is waited for, it warns."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def there(name: str) -> tuple[torch.device, str, Size]:
    """Device, the form that seeds are trained in, and sizes; torch is set as the top of this file says."""
    device = device_named(name)
    torch.set_float32_matmul_precision("high")  # TF32, of which a CPU knows nothing
    torch.backends.cudnn.benchmark = True  # as `offramp.fit` without deterministic kernels
    return (device, "compiled", ON_GPU) if device.type == "cuda" else (device, "plain", ON_CPU)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    device, form, size = there(options.device)
    rounds = rows.ENOUGH if options.quick else options.rounds
    found: list[rows.Row] = []
    details: dict[str, Any] = {}
    so_far = {"what": "training: forms, end to end, seeds side by side", **conditions(device), "rounds": rounds}
    so_far |= {"rows": found, "details": details}

    def keep(own: list[rows.Row], figures: dict[str, Any]) -> None:
        found.extend(own)
        details.update(figures)
        for row in own:
            print(json.dumps(row), file=sys.stderr, flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(so_far, indent=1) + "\n")
        give_back(device)

    names = [name for name in size.cases if name in (options.networks or size.cases)]
    forms = [one for one in size.forms if one in (options.forms or size.forms)]
    for name, one, precision in itertools.product(names, forms, PRECISIONS):
        if "steps" not in options.skip:
            keep(*form_of(name, size.cases[name], one, precision, size, rounds, device))
    case = next(iter(size.cases.values()))
    more: tuple[tuple[str, str, Callable[[], tuple[Any, Any]]], ...] = (
        ("seeds", "side by side", lambda: side_by_side(size, rounds, device)),
        ("profile", "a step of the loop, bf16", lambda: ([], profiles(case, ("plain", form), device))),
    )
    for part, about, work in more:
        if part not in options.skip:
            try:
                own, figures = work()
            except FAILURES as error:
                own, figures = [], {"why": str(error)}
            keep(own, {about: figures})
    return so_far


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = rows.parser(__doc__, rounds=15, threads=1)
    made.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu tries the script (default cuda)")
    made.add_argument("--networks", nargs="+", choices=CASES, metavar="NAME", help="steps of these alone")
    made.add_argument(
        "--forms",
        nargs="+",
        choices=dict.fromkeys((*ON_GPU.forms, *ON_CPU.forms)),
        metavar="NAME",
        help="these forms alone",
    )
    made.add_argument("--skip", nargs="+", choices=PARTS, default=(), metavar="PART", help="what not to measure")
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["seed"]:
        seed(*sys.argv[2:])
    else:
        options = parser().parse_args()
        if options.device != "cpu" and not torch.cuda.is_available():
            print("There is no CUDA GPU here: nothing is measured. (--device cpu --quick tries the script.)")
        else:
            rows.main(options, measure)
