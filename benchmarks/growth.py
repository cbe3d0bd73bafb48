"""How time and memory grow with images, exits, classes and the batch: nothing may grow faster than linearly.

    python benchmarks/growth.py [--rounds 11] [--threads 1] [--only WORD] [--quick] [--out FILE]

Each size of each subject has a process of its own, forked from one that has imported everything and done nothing. It
does the smallest of work once, so that libraries have what they keep, prepares its input, and then the sizes take
turns. Seconds are the processor's, of all threads, for the work alone: nothing here waits, and what others do on the
machine hardly counts. Memory is the largest resident size (`VmHWM`) less that before the input was made: input and
results are in it; less than a MiB counts as a MiB. With --quick there are two sizes of each.

The slope is that of the logarithm over that of the size: 1 is linear. It is taken in two ways, between the smallest and
the largest size, and by least squares over all; the larger counts. `last` is that between the two largest, where what
does not grow weighs least. A slope of 1.1 over sizes 1 to 16 is 32 % more per image at the end: maps and records that
have left the processor's caches cost as much once, and two medians of a busy machine differ by half of it. Something
quadratic has slope 2, n log n over these sizes 1.1 to 1.2. The search of thresholds sorts, and sweeps over exits until
nothing moves: each sweep is linear, but how many there are depends on the record (5 to 8 here), and its slope with it.
"""

import argparse
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import Any

import evaluation  # isort: skip  before torch: it sets what torch reads when it is loaded

import numpy as np
import rows
import torch

from offramp import EarlyExitNet, Engine, data, objectives
from offramp.backbones import msdnet
from offramp.costs import Cost, Count, cost
from offramp.data import Batch, Parts
from offramp.evaluation import anytime, budgeted, fit_temperatures, search_thresholds
from offramp.policy import EVERYBODY, SOFTMAX, Policy
from offramp.rules import Standard, Workbench
from offramp.runtime.timing import conditions, take_turns

LIMIT = 1.1
GOAL = f"slope at most {LIMIT}"
Work = Callable[[], object]


def step(exits: int, num_classes: int, batch_size: int) -> Work:
    """A training step of an MSDNet for CIFAR, float32."""
    network = msdnet(exits=exits, num_classes=num_classes, damping=True).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    rule.prepare(Workbench(network, network, objectives.dynamic(), optimizer))
    targets_B = torch.randint(num_classes, (batch_size,))
    batch = Batch(torch.randn(batch_size, 3, 32, 32), targets_B, torch.arange(batch_size), batch_size)
    return lambda: rule.step(batch, progress=0.0)


def multiply_adds(exits: int) -> float:
    return float(cost(msdnet(exits=exits)).exits[-1].multiply_adds)


def figures(exits: int, num_classes: int, num_images: int) -> Work:
    """The exits' figures with their calibration, temperatures and the 39 published points, of a record."""
    both, costs = evaluation.made_up(num_images, exits, num_classes), costs_of(exits)

    def work() -> None:
        search, test = map(dataclasses.replace, both)  # nothing has been read of them yet
        anytime(test)
        fit_temperatures(search)
        budgeted(search, test, costs)

    return work


def searching(exits: int, num_images: int) -> Work:
    """Thresholds for one budget, of a record whose confidences have been read."""
    (search, _), costs = evaluation.made_up(num_images, exits, 10), costs_of(exits)
    search.read(SOFTMAX)
    return lambda: search_thresholds(search, costs, [costs.exits[-1].operations / 2])


def costs_of(exits: int) -> Cost:
    counts = tuple(Count(100 * k, 100 * k, 1) for k in range(1, exits + 1))
    return Cost(counts, counts, counts, counts, (3, 32, 32))


def deciding() -> tuple[EarlyExitNet, Policy]:
    """A small network, and thresholds at which half of the random images that reach an exit leave there."""
    torch.manual_seed(0)
    network = msdnet(exits=3, num_classes=10, channels=8, growth_factors=(1, 2, 4)).eval()
    with torch.inference_mode():
        confidence_KB, _ = SOFTMAX.over(network(torch.randn(256, 3, 32, 32)), 10)
    return network, Policy((*confidence_KB.median(1).values.tolist()[:-1], EVERYBODY))


def engine(num_images: int) -> Work:
    """One call."""
    network, policy = deciding()
    run, images_BCHW = Engine(network, policy), torch.randn(num_images, 3, 32, 32)
    return lambda: run(images_BCHW)


def stream(num_images: int) -> Work:
    """Batches of 32 that are made as they are needed."""
    network, policy = deciding()
    run, images_BCHW = Engine(network, policy), torch.randn(32, 3, 32, 32)

    def work() -> None:
        for _ in run.stream(images_BCHW for _ in range(num_images // 32)):
            pass

    return work


def choice(num_images: int) -> Work:
    """Who leaves where, of recorded logits."""
    logits_KSC = torch.randn(5, num_images, 100)
    policy = Policy((0.05, 0.05, 0.05, 0.05, EVERYBODY))
    return lambda: policy.choose(logits_KSC, 100)


def data_set(num_images: int) -> Parts:
    """CIFAR-sized, with crops and flips for training."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(num_images) % 100
    return data.arrays(pixels, labels, pixels[:100], labels[:100], padding=4, flip=True)


def building(num_images: int) -> Work:
    """Parts of one's arrays: checked, divided, with statistics and fingerprint."""
    return lambda: data_set(num_images).train.fingerprint()


def batches(num_images: int) -> Work:
    """One pass over the training part."""
    train = data_set(num_images).train

    def work() -> None:
        for _ in train.batches():
            pass

    return work


@dataclass(frozen=True)
class Subject:
    """What is done, in which sizes.

    Attributes:
        of: Makes the work of a size, and its input.
        against: What the size is.
        sizes: Rising.
        quick: Those of `--quick`.
        least: A size below them all, for what is kept between calls.
        grows: What is to be linear in, of a size.
    """

    of: Callable[[int], Work]
    against: str
    sizes: Sequence[int]
    quick: Sequence[int]
    least: int
    grows: Callable[[int], float] = float


IMAGES, FEW_IMAGES = (5_000, 10_000, 20_000, 50_000), (5_000, 20_000)
EXITS, FEW_EXITS = (3, 5, 7, 9), (3, 7)
CLASSES, FEW_CLASSES = (10, 100, 1000), (10, 1000)
SUBJECTS = {
    "training step": Subject(lambda n: step(3, 100, n), "batch", (16, 32, 64, 128, 256), (8, 32), 2),
    "training step, batch 16": Subject(lambda k: step(k, 100, 16), "multiply-adds", EXITS, FEW_EXITS, 2, multiply_adds),
    "training step, batch 64": Subject(lambda n: step(3, n, 64), "classes", CLASSES, FEW_CLASSES, 5),
    "figures of a record": Subject(lambda n: figures(5, 100, n), "images", IMAGES, FEW_IMAGES, 500),
    "figures of 10,000 images": Subject(lambda k: figures(k, 100, 10_000), "exits", EXITS, FEW_EXITS, 2),
    "figures of 10,000 images, 5 exits": Subject(lambda n: figures(5, n, 10_000), "classes", CLASSES, FEW_CLASSES, 5),
    "search of thresholds": Subject(lambda n: searching(5, n), "images", IMAGES, FEW_IMAGES, 500),
    "search of thresholds, 10,000 images": Subject(lambda k: searching(k, 10_000), "exits", EXITS, FEW_EXITS, 2),
    "choice by a policy": Subject(choice, "images", IMAGES, FEW_IMAGES, 500),
    "engine, one call": Subject(engine, "images", (256, 512, 1024, 2048, 4096), (128, 512), 32),
    "engine, stream": Subject(stream, "images", (256, 512, 1024, 2048, 4096), (128, 512), 32),
    "building a data set": Subject(building, "images", IMAGES, FEW_IMAGES, 500),
    "batches of an epoch": Subject(batches, "images", IMAGES, FEW_IMAGES, 500),
}
_work: list[Work] = []  # of a process of a size
_before: list[float] = []


def prepare(name: str, size: int, threads: int) -> None:
    """In the process of a size: all up to the first turn."""
    torch.set_num_threads(threads)
    subject = SUBJECTS[name]
    subject.of(subject.least)()
    _before.append(evaluation.resident("VmRSS"))
    _work.append(subject.of(size))


def turn() -> float:
    """In the process of a size: do the work, and return the processor's seconds."""
    start = time.process_time()
    _work[0]()
    return time.process_time() - start


def peak() -> float:
    """In the process of a size: MiB that have been needed so far."""
    return max(1.0, 1024 * (evaluation.resident("VmHWM") - _before[0]))


def measured(name: str, sizes: Sequence[int], rounds: int, threads: int) -> tuple[list[list[float]], list[float]]:
    """Seconds of each size in each round, and MiB of each size."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [f"offramp.{room}" for room in ("backbones", "data", "engine", "evaluation", "rules")]
    )
    with contextlib.ExitStack() as stack:
        pools = {
            str(size): stack.enter_context(ProcessPoolExecutor(1, context, prepare, (name, size, threads)))
            for size in sizes
        }
        variants = {size: functools.partial(_result, pool, turn) for size, pool in pools.items()}
        seconds = take_turns(variants, rounds, warmup=1)
        return list(seconds.values()), [_result(pool, peak) for pool in pools.values()]


def _result(pool: ProcessPoolExecutor, of: Callable[[], float]) -> float:
    return pool.submit(of).result()


def slopes(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Of the logarithm of values over that of sizes: see the top of this file."""
    x, y = (list(map(math.log, numbers)) for numbers in (sizes, values))
    return {
        "ends": (y[-1] - y[0]) / (x[-1] - x[0]),
        "least squares": linear_regression(x, y).slope,
        "last": (y[-1] - y[-2]) / (x[-1] - x[-2]),
    }


def larger(found: dict[str, float]) -> float:
    return max(found["ends"], found["least squares"])


def growth(name: str, options: argparse.Namespace, rounds: int) -> tuple[list[rows.Row], dict[str, Any]]:
    """The rows of a subject, time and memory, and what they are made of."""
    subject = SUBJECTS[name]
    sizes = subject.quick if options.quick else subject.sizes
    seconds, memory = measured(name, sizes, rounds, options.threads)
    x = [subject.grows(size) for size in sizes]
    in_time = [slopes(x, times) for times in zip(*seconds, strict=True)]
    in_memory = slopes(x, memory)
    what = f"{name}, against {subject.against}"
    about = f"{what} ({x[0]:,.0f} to {x[-1]:,.0f})"
    made = [rows.value(f"time of {about}", "slope", list(map(larger, in_time)), GOAL, below=LIMIT)]
    slope = round(larger(in_memory), 4)
    made.append({"name": f"memory of {about}", "unit": "slope", "value": slope, "goal": GOAL, "met": slope < LIMIT})
    details = {
        "against": subject.against,
        "sizes": x,
        "seconds": [round(median(times), 5) for times in seconds],
        "mib": [round(mib, 1) for mib in memory],
        "slopes_of_seconds": {way: round(median(found[way] for found in in_time), 3) for way in in_memory},
        "slopes_of_memory": {way: round(found, 3) for way, found in in_memory.items()},
    }
    return made, details


def table(details: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Seconds and MiB of the smallest and of the largest size, and the slopes between: lines of Markdown."""
    heads = (
        "what",
        "against",
        "from",
        "to",
        "s, from",
        "s, to",
        "slope of time",
        "MiB, from",
        "MiB, to",
        "slope of memory",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, found in details.items():
        ends = (f"{found['sizes'][end]:,.0f}" for end in (0, -1))
        seconds, mib = ([f"{found[what][end]:,.4g}" for end in (0, -1)] for what in ("seconds", "mib"))
        slopes = (f"{larger(found[what]):.3g}" for what in ("slopes_of_seconds", "slopes_of_memory"))
        cells = (name, found["against"], *ends, *seconds, next(slopes), *mib, next(slopes))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds = rows.ENOUGH if options.quick else options.rounds
    results: list[rows.Row] = []
    details: dict[str, Any] = {}
    for name in SUBJECTS:
        if options.only in name:
            made, details[name] = growth(name, options, rounds)
            results += made
            print(f"{name}: {details[name]['slopes_of_seconds']}", file=sys.stderr)
    lines = table(details)
    print("\n".join(lines), file=sys.stderr)
    return {
        "what": "growth of time and memory: slopes in logarithms",
        **before,
        "rounds": rounds,
        "rows": results,
        "growth": details,
        "table": lines,
    }


def parser() -> argparse.ArgumentParser:
    made = rows.parser(__doc__, rounds=11, threads=1)
    made.add_argument("--only", default="", help="of subjects with this in their name")
    return made


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
