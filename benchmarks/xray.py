"""What it costs to watch gradients (`--xray`) in training.

    python benchmarks/xray.py [--rounds 201] [--threads 1] [--quick] [--out FILE]

A small MSDNet of four exits on 2,000 images of Fashion-MNIST, dynamic power-sqrt, batches of 64; 256 are watched. Steps
in turns, with and without, in seconds of the processor, which vary less than those of the clock where a machine does
other things as well. And whole runs of one epoch, by the clock, so with checkpoints and the waiting for the disk: what
watching adds, call by call, over the run.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch

import offramp
from offramp import objectives
from offramp.backbones import msdnet
from offramp.config import TrainConfig
from offramp.data import Parts, fashion_mnist
from offramp.network import EarlyExitNet
from offramp.rules import Standard, Workbench
from offramp.runtime.timing import conditions, take_turns
from offramp.training.monitor import EpochSums
from offramp.training.xray import GradientWatch

IMAGES, WATCHED, RUNS, SHARE = 2000, 256, 5, 0.02
ADDED = ("add", "end_epoch", "state", "save")


def small() -> EarlyExitNet:
    torch.manual_seed(0)
    return msdnet(
        exits=4, base=1, step=1, step_mode="lin_grow", head_channels=32, num_classes=10, damping=True, in_channels=1,
        image_size=28, growth_factors=(1, 2, 4), bottleneck_factors=(1, 2, 4),
    )  # fmt: skip


def steps(parts: Parts) -> dict[str, Callable[[], float]]:
    """The next step of one training, with and without watching; each gives the processor's seconds."""
    network = small().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    bench = Workbench(network, network, objectives.dynamic(), optimizer)
    rule, sums, watch = Standard(), EpochSums(), GradientWatch(bench, parts.train, WATCHED)
    rule.prepare(bench)
    batches = itertools.cycle([batch for batch in parts.train.batches() if batch.size == parts.train.batch_size])

    def step(watched: bool) -> float:
        batch = next(batches)
        start = time.process_time()
        outcome = rule.step(batch, 0.0)
        sums.add(outcome, batch.targets_B, batch.size, 10)
        if watched:
            watch.add(outcome, batch, 0.0)
        return time.process_time() - start

    return {"without": lambda: step(False), "watching": lambda: step(True)}


def share_of_a_run(parts: Parts) -> float:
    """The share of a run of one epoch that watching took."""
    spent, originals = [0.0], {name: getattr(GradientWatch, name) for name in ADDED}

    def clocked(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - start

        return call

    try:
        for name, original in originals.items():
            setattr(GradientWatch, name, clocked(original))
        with tempfile.TemporaryDirectory() as out:
            network, config = small(), TrainConfig(epochs=1, xray=WATCHED)
            start = time.perf_counter()
            offramp.fit(network, objectives.dynamic(), parts.train, parts.val, config, out=out)
            return spent[0] / (time.perf_counter() - start)
    finally:
        for name, original in originals.items():
            setattr(GradientWatch, name, original)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    num_images = 400 if options.quick else IMAGES
    parts = fashion_mnist(limit=num_images, holdout=200)
    rounds = 21 if options.quick else options.rounds
    seconds = take_turns(steps(parts), rounds)
    shares = [share_of_a_run(parts) for _ in range(RUNS)]
    goal = f"at most {SHARE:.0%}"
    return {
        "what": "watching gradients, Fashion-MNIST, MSDNet of 4 exits, batches of 64",
        **before,
        "rounds": rounds,
        "images": num_images,
        "watched": WATCHED,
        "rows": [
            rows.paired("a step, watching over without", "", seconds["watching"], seconds["without"], goal,
                        at_most=1 + SHARE),
            rows.value("share of a run of one epoch", "", shares, goal, below=SHARE),
        ],
        "step_ms": {name: rows.spread([1000 * s for s in values]) for name, values in seconds.items()},
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=201, threads=1)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
