"""What it costs to watch gradients (`--xray`) in training.

    python benchmarks/xray.py [--rounds 15] [--threads 1] [--quick] [--out FILE]

Whole runs of one epoch on 2,000 images of Fashion-MNIST in turns, with 256 of them watched and with none, checkpoints
and all: a small MSDNet of four exits, dynamic power-sqrt, batches of 64. Beside it, since whole runs vary by more than
what is looked for: the seconds of what watching adds, one by one, over those of the run that watches.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch

import offramp
from offramp import objectives
from offramp.backbones import msdnet
from offramp.config import TrainConfig
from offramp.data import Parts, fashion_mnist
from offramp.engine.timing import conditions, take_turns
from offramp.training.xray import GradientWatch

IMAGES, WATCHED, SHARE = 2000, 256, 0.02
ADDED = ("add", "end_epoch", "state", "save")


def make_run(parts: Parts, watched: int, folder: Path) -> Callable[[], float]:
    """A function that trains for an epoch in a new folder and returns its seconds."""

    def run() -> float:
        torch.manual_seed(0)
        network = msdnet(
            exits=4, base=1, step=1, step_mode="lin_grow", head_channels=32, num_classes=10, damping=True,
            in_channels=1, image_size=28, growth_factors=(1, 2, 4), bottleneck_factors=(1, 2, 4),
        )  # fmt: skip
        config = TrainConfig(epochs=1, xray=watched)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.perf_counter()
            offramp.fit(network, objectives.dynamic(), parts.train, parts.val, config, out=out)
            return time.perf_counter() - start

    return run


def timed(run: Callable[[], float], into: list[float]) -> Callable[[], float]:
    """The same run, which also leaves the share of its seconds that watching took."""

    def instead() -> float:
        spent = [0.0]
        originals = {name: getattr(GradientWatch, name) for name in ADDED}

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
            seconds = run()
        finally:
            for name, original in originals.items():
                setattr(GradientWatch, name, original)
        into.append(spent[0] / seconds)
        return seconds

    return instead


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before, shares = conditions(), list[float]()
    num_images = 400 if options.quick else IMAGES
    parts = fashion_mnist(limit=num_images, holdout=200)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "without": make_run(parts, 0, Path(folder)),
            "watching": timed(make_run(parts, WATCHED, Path(folder)), shares),
        }
        seconds = take_turns(runs, 5 if options.quick else options.rounds, warmup=1)
    goal = f"at most {SHARE:.0%}"
    return {
        "what": "a run of one epoch, Fashion-MNIST, MSDNet of 4 exits, batches of 64",
        **before,
        "images": num_images,
        "watched": WATCHED,
        "rows": [
            rows.value("seconds spent on watching over those of the run", "", shares, goal, below=SHARE),
            rows.paired("watching over without", "", seconds["watching"], seconds["without"], goal, at_most=1 + SHARE),
        ],
        "seconds": {name: rows.spread(values) for name, values in seconds.items()},
    }


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=15, threads=1)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
