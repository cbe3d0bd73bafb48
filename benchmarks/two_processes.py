"""Training by one process with all threads, or by as many processes with one thread each: which is faster?

    python benchmarks/two_processes.py [--rounds 15] [--threads 2] [--quick] [--out FILE]

MSDNet-7 for CIFAR-100 on random images, in float32 and in bf16, trained by `offramp.fit`: as one process; as two that
share each batch of 64, as under torchrun (gloo, plain sums of the gradients); and as two runs that know nothing of each
other, each with batches of 64, which is how seeds of an experiment can be trained side by side. All are started once
and take turns: the others wait, without computing, until they are told to go on. What counts is images a second: of a
shared batch the slower process decides, of two runs the rates add up. There is no goal. With --quick bf16 alone.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch

import offramp
from data import BATCH, NETWORKS, random_images
from offramp import backbones, objectives
from offramp.config import Spec, TrainConfig
from offramp.data import Batch
from offramp.rules import Outcome, TrainingRule
from offramp.runtime.timing import conditions, take_turns

NETWORK = "msdnet7-cifar100"
PRECISIONS = ("float32", "bf16")
WARMUP = 1  # turns
ONE, SHARED, APART = "one process", "processes that share batches", "runs side by side"


class Paced(TrainingRule):
    """The standard rule; after so many steps it says how long they took and waits to be told the next number."""

    def __init__(self) -> None:
        self.left, self.started = 0, 0.0

    def step(self, batch: Batch, progress: float) -> Outcome:
        if self.left == 0:
            if self.started:
                print(time.perf_counter() - self.started, flush=True)
            told = sys.stdin.readline()
            if not told:
                os._exit(0)  # the one that asks is done; nothing of this run is kept
            self.left, self.started = int(told), time.perf_counter()
        self.left -= 1
        return self.bench.descend(batch, progress)


def paced(folder: str, precision: str, threads: str, steps: str) -> None:
    """In a process of its own: a training run that goes on when it is told to."""
    num_classes, image_shape = NETWORKS[NETWORK]
    torch.manual_seed(0)
    network = backbones.build(Spec(NETWORK), num_classes=num_classes, image_shape=image_shape, damping=False)
    train = random_images(int(steps) * BATCH, image_shape, num_classes).train
    config = TrainConfig(epochs=1, precision=precision, threads=int(threads), device="cpu")  # type: ignore[arg-type]
    offramp.fit(network, objectives.CrossEntropy(), train, None, config, out=folder, rule=Paced())


class Run:
    """A process that trains when it is told to."""

    def __init__(self, folder: Path, precision: str, threads: int, steps: int, together: Mapping[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "paced", str(folder), precision, str(threads), str(steps)],
            env={**environment, **together},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self, steps: int) -> None:
        """Tell it to take so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        """What they took; waits for it."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(f"A training run ended with status {self.process.wait()}; see above.")
        return float(said)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def turn(runs: list[Run], steps: int, is_shared: bool) -> Callable[[], float]:
    """A function that lets runs take steps at the same time, and returns the seconds of `BATCH` images."""

    def go() -> float:
        for run in runs:
            run.go(steps)
        took = [run.seconds() / steps for run in runs]
        return max(took) if is_shared else 1 / sum(1 / seconds for seconds in took)

    return go


def meeting_point(processes: int) -> dict[str, str]:
    """What torchrun tells its processes, but for their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def on(precision: str, processes: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of `BATCH` images of each way, in every round."""
    total = (rounds + WARMUP) * steps + 1
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:

        def run(folder: str, threads: int, together: Mapping[str, str] | None = None) -> Run:
            one = Run(Path(name, folder), precision, threads, total, together or {})
            stack.callback(one.stop)
            return one

        there = meeting_point(processes)
        ranks = [{**there, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        ways = {
            ONE: turn([run("one", processes)], steps, True),
            SHARED: turn([run("shared", 1, rank) for rank in ranks], steps, True),
            APART: turn([run(f"apart{i}", 1) for i in range(processes)], steps, False),
        }
        return take_turns(ways, rounds, WARMUP)


def verdict(row: rows.Row, name: str, other: str) -> str:
    """Which is faster, said plainly."""
    if row["at_least"] > 1:
        return f"{name}: faster than {other}"
    if row["at_most"] < 1:
        return f"{name}: slower than {other}"
    return f"{name}: no difference to {other} that shows"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    processes = options.threads
    before = {**conditions(), "threads": processes}
    rounds, steps = (rows.ENOUGH, 1) if options.quick else (options.rounds, 3)
    found, details = [], {}
    for precision in PRECISIONS[-1:] if options.quick else PRECISIONS:
        seconds = on(precision, processes, rounds, steps)
        for way in (SHARED, APART):
            about = f"{processes} {way} / one process of {processes} threads, {precision}"
            row = rows.paired(about, "times the images a second", seconds[ONE], seconds[way], "none")
            found.append(row)
        details[precision] = {
            "images a second": {way: rows.spread([BATCH / s for s in times]) for way, times in seconds.items()},
            "said plainly": [verdict(row, way, ONE) for row, way in zip(found[-2:], (SHARED, APART), strict=True)],
        }
    return {
        "what": "training MSDNet-7, batch 64: processes of one thread over one process of all threads",
        **before,
        "rounds": rounds,
        "rows": found,
        "details": details,
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    return rows.parser(__doc__, rounds=15, threads=2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["paced"]:
        paced(*sys.argv[2:])
    else:
        rows.main(parser().parse_args(), measure)
