"""What evaluation costs beside the network: one pass, and everything that is computed from its record.

    python benchmarks/evaluation.py [--rounds 15] [--threads 2] [--images 50000] [--quick] [--out FILE]

The pass: `record` in turns with the bare loop over the same batches, made ready before, through the same network.

The record: 5 exits, 50,000 images, 1,000 classes and the damping neuron, 1 GB of float32; random logits, in which the
true class is the likelier the deeper the exit. A process of its own computes the exits' figures (accuracy, likelihood,
calibration), temperatures and the 39 published points, and once all that `offramp evaluate` says of thresholds. The
records of search and test hold the same logits, so every part reads all of them and memory holds them once. Memory is
the largest resident size less that after the imports: the record is in it.
"""

import argparse
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import numpy as np
import rows
import torch

from offramp import EarlyExitNet, data
from offramp.backbones import msdnet
from offramp.costs import Cost, Count
from offramp.data import Batch
from offramp.evaluation import Record, anytime, budgeted, fit_temperatures, gains, geometric_policies, record
from offramp.policy import SOFTMAX, Policy
from offramp.results.dynamic import dynamic
from offramp.runtime.timing import conditions, take_turns

EXITS, CLASSES = 5, 1000
SECONDS, GIB = 5.0, 1.5
PASS = 1.03
GOAL = ("exits' figures", "temperatures", "published curve")


def resident(key: str) -> float:
    """GiB of this process: `VmRSS` now, `VmHWM` at most. Of Linux alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**20


def made_up(num_images: int, exits: int = EXITS, classes: int = CLASSES) -> tuple[Record, Record]:
    """Records named search and test, of the same logits."""
    generator = torch.Generator().manual_seed(0)
    logits_KSC = torch.empty(exits, num_images, classes + 1)
    targets_S = torch.randint(classes, (num_images,), generator=generator)
    images_S = torch.arange(num_images)
    for k, logits_SC in enumerate(logits_KSC):
        logits_SC.normal_(generator=generator).mul_(1.5)
        logits_SC[images_S, targets_S] += 4 + k + 2 * torch.randn(num_images, generator=generator)
    names = tuple(f"class {n}" for n in range(classes))
    both = (
        Record(logits_KSC, targets_S, images_S, names, f"made-up/{part}", part, "weights", num_images, "cpu")
        for part in ("search", "test")
    )
    return next(both), next(both)


def arithmetic(num_images: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of each part in every round, and GiB at most after the first parts and after all."""
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    counts = tuple(Count(operations, operations, 1) for operations in (100, 200, 400, 700, 1000))
    cost = Cost(counts, counts, counts, counts, (3, 224, 224))
    search, test = made_up(num_images)
    parts: dict[str, Callable[[Record, Record], object]] = {
        "exits' figures": lambda search, test: anytime(test),
        "temperatures": lambda search, test: fit_temperatures(search),
        "published curve": lambda search, test: budgeted(search, test, cost),
    }
    others: dict[str, Callable[[Record, Record], object]] = {
        "all that `evaluate` says of thresholds": lambda search, test: dynamic(
            search, test, cost, Path("none.json"), SOFTMAX
        ),
        "paired gains": lambda search, test: gains(*compared(search, cost), test, cost),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*parts, *others)}
    memory = {}
    for number in range(rounds):
        fresh = [dataclasses.replace(one) for one in (search, test)]  # nothing has been read of them yet
        for name, part in (parts if number < rounds - 1 else {**parts, **others}).items():
            start = time.perf_counter()
            part(*fresh)
            seconds[name].append(time.perf_counter() - start)
            memory[name] = resident("VmHWM") - before
    return {"seconds": seconds, "memory": memory}


def compared(search: Record, cost: Cost) -> tuple[Sequence[Policy], Sequence[Policy]]:
    """Policies, and the rivals that they are compared with."""
    rivals = geometric_policies(search, cost)
    return rivals[::13], rivals


@dataclass(frozen=True)
class Ready:
    """A part of a data set whose batches are ready."""

    ready: tuple[Batch, ...]
    name: str
    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return sum(batch.size for batch in self.ready)

    def fingerprint(self) -> str:
        return "ready"

    def batches(self, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        return iter(self.ready[start:])


def one_pass(network: EarlyExitNet, num_images: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the bare network, and of `record` from ready batches and from images as they lie in memory."""
    assert network.image_shape is not None
    channels, size, _ = network.image_shape
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, channels, size, size), dtype=np.uint8)
    labels = np.arange(num_images) % network.num_classes
    test = data.arrays(pixels[:100], labels[:100], pixels, labels, batch_size=64, holdout=0).test
    ready = Ready(tuple(test.batches()), test.name, test.num_classes, tuple(test.class_names))
    network.eval()

    @torch.inference_mode()
    def bare() -> float:
        start = time.perf_counter()
        for batch in ready.ready:
            network(batch.images_BCHW)
        return time.perf_counter() - start

    def recording(split: Any) -> Callable[[], float]:
        def step() -> float:
            start = time.perf_counter()
            record(network, split)
            return time.perf_counter() - start

        return step

    return take_turns({"bare": bare, "ready batches": recording(ready), "images in memory": recording(test)}, rounds, 1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(1)  # of the pass: what it adds to the network shows best where nothing waits for a thread
    before = {**conditions(), "threads": options.threads, "threads_of_pass": 1}
    torch.manual_seed(0)
    network = msdnet(exits=5, num_classes=100, image_size=32)
    num_images, rounds = (256, rows.ENOUGH) if options.quick else (1024, options.rounds)
    passes = one_pass(network, num_images, rounds)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(arithmetic, options.images, min(rounds, 7), options.threads).result()
    seconds, memory = found["seconds"], found["memory"]
    together = [sum(times) for times in zip(*(seconds[name] for name in GOAL), strict=True)]
    sizes = f"of {options.images:,} x {EXITS} x {CLASSES}"
    results = [
        rows.paired(f"record / bare network, {name}", "", passes[name], passes["bare"], f"at most {PASS}", at_most=PASS)
        for name in ("ready batches", "images in memory")
    ]
    results.append(rows.value(f"figures {sizes}", "s", together, f"under {SECONDS:g} s", below=SECONDS))
    for name, size in (("figures", max(memory[name] for name in GOAL)), ("all figures", max(memory.values()))):
        about = {"name": f"memory for {name} {sizes}, the record included", "unit": "GiB", "value": round(size, 3)}
        results.append({**about, "goal": f"under {GIB:g} GiB", "met": size < GIB})
    return {
        "what": "evaluation: one pass, and what is computed from its record",
        **before,
        "images": options.images,
        "rounds": rounds,
        "images_of_pass": num_images,
        "rows": results,
        "seconds": {name: rows.spread(times) for name, times in seconds.items()},
        "pass_seconds": {name: rows.spread(times) for name, times in passes.items()},
        "memory_gib": {name: round(size, 3) for name, size in memory.items()},
    }


def parser() -> argparse.ArgumentParser:
    made = rows.parser(__doc__, rounds=15, threads=2)
    made.add_argument("--images", type=int, default=50_000, help="of the record (default 50,000)")
    return made


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
