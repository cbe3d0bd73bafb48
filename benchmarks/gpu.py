"""Training on a GPU: steps in every form, end to end with the data path there, five seeds side by side, a profile.

    python benchmarks/gpu.py [--device cuda] [--rounds 15] [--threads 1] [--quick] [--out FILE]

Without a GPU it says so in one line, and is done; `--device cpu --quick` runs it small, to try the script itself.

Steps: forward, sum of cross-entropies, backward, SGD on a random batch that is there already, channels last; float32
multiplied in TF32, convolutions tried by cuDNN (`cudnn.benchmark`), kernels not deterministic. Rows count images a
second. A product of large matrices takes turns with the steps: the device's peak. A form that fails has a row that says
why.

End to end: `offramp.fit` on random images of CIFAR's size, objective dynamic, form graphs, bf16, deterministic kernels
off; images are cut out of pixels on the device. Its epochs end as always (checkpoint, metrics). Five such processes,
with seeds of their own, are told to take as many steps at the same time as one takes alone. Processes take turns on a
GPU, unless NVIDIA's MPS (`nvidia-cuda-mps-control -d`, before this) lets their kernels run at the same time.
"""

import argparse
import contextlib
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
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from two_processes import Paced, Run

import offramp
from data import random_images
from offramp import backbones, objectives
from offramp.config import Spec, TrainConfig
from offramp.costs import cost
from offramp.data import Batch
from offramp.devices import device_named
from offramp.engine.timing import conditions, take_turns
from offramp.errors import OfframpError
from offramp.fast import training_form
from offramp.network import EarlyExitNet
from offramp.rules import Outcome, Standard, Workbench
from offramp.runs import RunFolder
from offramp.training.loop import Loop
from offramp.training.monitor import Placement

SEEDS, WITHIN = 5, 2.5
WARMUP = 2
PRECISIONS = ("float32", "bf16")
FAILURES = (
    OfframpError,
    RuntimeError,
)  # of forms: what cannot be captured or compiled, memory that is not there


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
    forms: tuple[str, ...]
    steps: int  # in a row between two looks at the clock
    images: int  # of an epoch, end to end
    side: int  # of the matrices whose product is the peak
    seeds: int


ON_GPU = Size(CASES, ("plain", "merged", "compiled", "reduce-overhead", "graphs"), 20, 50_000, 8192, SEEDS)
ON_CPU = Size(SMALL, ("plain", "merged"), 1, 24, 256, 2)


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    return network.to(device=device, memory_format=torch.channels_last).train()


def bench_of(case: Case, form: str, precision: str, device: torch.device, objective: str) -> Workbench:
    """Network, form and optimiser, as `offramp.fit` makes them."""
    network = built(case, device)
    if form == "reduce-overhead":  # not a form of offramp's
        forward = torch.compile(network, mode=form, dynamic=False)
    else:
        forward = training_form(network, form, device)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    return Workbench(network, forward, objectives.build(Spec(objective)), optimizer, precision)  # type: ignore[arg-type]


def step_of(case: Case, form: str, precision: str, device: torch.device, steps: int) -> Callable[[], float]:
    """A function that trains for some steps on one batch and returns the seconds of one step; it has run already."""
    images_BCHW = torch.randn(case.batch, *case.image_shape, device=device).to(memory_format=torch.channels_last)
    targets_B = torch.randint(case.num_classes, (case.batch,), device=device)
    batch = Batch(images_BCHW, targets_B, torch.arange(case.batch), case.batch)
    rule = Standard()
    rule.prepare(bench_of(case, form, precision, device, "cross-entropy"))
    clocked(lambda: rule.step(batch, 0.0), 3, device)()  # compiles and captures
    return clocked(lambda: rule.step(batch, 0.0), steps, device)


def product(precision: str, device: torch.device, size: Size) -> Callable[[], float]:
    """A product of matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, size.side, size.side, device=device, dtype=dtype)
    return clocked(lambda: left @ right, size.steps, device)


def goal_of(case: Case) -> str:
    return "none" if case.goal is None else f"at least {case.goal:,} images a second"


def steps_of(
    name: str, case: Case, size: Size, rounds: int, device: torch.device
) -> tuple[list[rows.Row], dict[str, Any]]:
    """Rows of one network, and the shares of the device's peak."""
    found: list[rows.Row] = []
    turns: dict[Any, Callable[[], float]] = {("peak", p): product(p, device, size) for p in PRECISIONS}
    for form in size.forms:
        for precision in PRECISIONS:
            try:
                turns[form, precision] = step_of(case, form, precision, device, size.steps)
            except FAILURES as error:
                label, why = f"{name}, {form}, {precision}", str(error).partition("\n")[0]
                found.append(
                    {"name": label, "unit": "images/s", "value": None, "goal": goal_of(case), "met": False, "why": why}
                )
    seconds = take_turns(turns, rounds, WARMUP)
    operations = 6 * cost(built(case, torch.device("cpu"))).exits[-1].multiply_adds * case.batch  # see training_step.py
    details: dict[str, Any] = {}
    for (form, precision), times in seconds.items():
        rate = 2 * size.side**3 / median(seconds["peak", precision])
        if form == "peak":
            details[f"peak, {precision}"] = {"trillion operations a second": round(rate / 1e12, 2)}
            continue
        label = f"{name}, {form}, {precision}"
        a_second = [case.batch / s for s in times]
        found.append(rows.value(label, "images/s", a_second, goal_of(case), above=case.goal or 0.0))
        share = round(operations / median(times) / rate, 4)
        details[label] = {"images a second": rows.spread(a_second), "share of peak": share}
    return found, details


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
    loop = Loop(RunFolder(folder), bench, rule, train, None, TrainConfig(epochs=1), place)
    for number, batch in enumerate(loop.train.batches()):
        images_BCHW, targets_B = place(batch.images_BCHW, batch.targets_B)
        loop._one_step(batch._replace(images_BCHW=images_BCHW, targets_B=targets_B), number)
        yield


def summary(case: Case, form: str, device: torch.device) -> dict[str, Any]:
    """What a step of the training loop asks of the device, and where it waits for it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with tempfile.TemporaryDirectory() as folder:
        steps = whole_steps(case, form, device, folder)
        for _ in range(5):
            next(steps)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with waiting_is_told(device):
                next(steps)
        wait_for(device)
        with profile(activities=activities) as seen:
            start = time.perf_counter()
            next(steps)
            wait_for(device)
            wall = time.perf_counter() - start
    events = list(seen.events() or ())
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    return {
        "operators asked for": sum(e.name.startswith("aten::") for e in events),
        "launches": sum("LaunchKernel" in e.name or "GraphLaunch" in e.name for e in events),
        "kernels and copies": len(kernels),
        "milliseconds on the device": round(sum(e.time_range.elapsed_us() for e in kernels) / 1000, 3),
        "milliseconds, profiled": round(1000 * wall, 3),
        "waits for the device": [f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroniz" in str(w.message)],
    }


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
    return (device, "graphs", ON_GPU) if device.type == "cuda" else (device, "auto", ON_CPU)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    device, form, size = there(options.device)
    before = conditions(device)
    rounds = rows.ENOUGH if options.quick else options.rounds
    found: list[rows.Row] = []
    details: dict[str, Any] = {}
    for name, case in size.cases.items():
        own, details[name] = steps_of(name, case, size, rounds, device)
        found += own
        if device.type == "cuda":
            torch.cuda.empty_cache()
    own, details["side by side"] = side_by_side(size, rounds, device)
    found += own
    case = next(iter(size.cases.values()))
    details["a step of the loop, bf16"] = {f: summary(case, f, device) for f in dict.fromkeys(("plain", form))}
    return {
        "what": "training: forms, end to end, seeds side by side",
        **before,
        "rounds": rounds,
        "rows": found,
        "details": details,
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = rows.parser(__doc__, rounds=15, threads=1)
    made.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu tries the script (default cuda)")
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
