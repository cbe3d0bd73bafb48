"""How long one waits for offramp: its import, its help, and the first step of a training, each in a fresh process.

    python benchmarks/startup.py [--rounds 11] [--threads 1] [--quick] [--out FILE]

`import offramp` is timed by the process that does it, which also says that torch was not loaded. The first step is
that of `offramp train --data digits`, from the start of the command to the moment when the step is done: the command
gets the rule of this file, the standard one, which says so on standard output; then the command is stopped. Beside
them, but not with --quick, what it loads that is not ours: Python, torch, scikit-learn and what torch's optimisers
load, one upon the other. Files are in the system's cache: everything runs once before it is timed.

Without --quick also the first step of MSDNet-7 in bf16 with `--form compiled`, on random images of CIFAR's size, made
in the process: a single time with an empty folder for what torch compiles, which takes minutes (the first time on
a machine), and then with a folder that has it (the second time).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch

from offramp import data
from offramp.data import Batch, Parts
from offramp.rules import Outcome, TrainingRule
from offramp.runtime.timing import conditions, take_turns

IMPORT_MS, HELP_S, STEP_S, READY_S = 50.0, 0.5, 5.0, 20.0
DIGITS = ("--data", "digits")
COMPILED = "--network msdnet7-cifar100 --data startup:made_up --form compiled --precision bf16".split()
COLD, WARM = "first time on a machine", "second time"
DONE = "first step"
IMPORT = (
    "import sys, time; start = time.perf_counter(); import offramp; "
    "print(time.perf_counter() - start, 'torch' in sys.modules)"
)
LEAVE = "import os; os._exit(0)"  # taking everything down again would count as well
OTHERS = {
    "python": LEAVE,
    "and torch": f"import torch; {LEAVE}",
    "and scikit-learn's data sets": f"import torch, sklearn.datasets; {LEAVE}",
    "and what torch's optimisers load": f"import torch, sklearn.datasets, torch._dynamo; {LEAVE}",
}


class FirstStep(TrainingRule):
    """The standard rule; says when a step is done."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        outcome = self.bench.descend(batch, progress)
        print(DONE, flush=True)
        return outcome


def made_up(batch_size: int = 64) -> Parts:
    """Random images of CIFAR's size; for `--data`."""
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch_size, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(len(pixels)) % 100
    return data.arrays(pixels, labels, pixels[:100], labels[:100], batch_size=batch_size, holdout=0)


def importing() -> float:
    """Seconds of `import offramp`."""
    said = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout.split()
    assert said[1] == "False", "import offramp loads torch"
    return float(said[0])


def whole(*words: str) -> Callable[[], float]:
    """A function that runs Python with these words to its end, and returns its seconds."""

    def run() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return run


def first_step(words: Sequence[str], threads: int, keep: str | None = None) -> Callable[[], float]:
    """A function that starts a training and returns the seconds until its first step is done.

    Args:
        words: Data, network and form, as for the command.
        threads: Of the training.
        keep: The folder of what torch compiles; the usual one if None.
    """
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    train = [sys.executable, "-m", "offramp", "train", *words, "--rule", f"{Path(__file__).stem}:FirstStep"]

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [*train, "--threads", str(threads), "--out", f"{folder}/run"]
            kept = {} if keep is None else {"TORCHINDUCTOR_CACHE_DIR": keep}
            start = time.perf_counter()
            with subprocess.Popen(
                command, env=environment | kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                said = process.stdout.readline()
                seconds = time.perf_counter() - start
                process.kill()
                _, errors = process.communicate()
        assert said.strip() == DONE, errors
        return seconds

    return run


def compiled(rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds to the first step where the network has to be compiled, and where what it gave is there."""
    with tempfile.TemporaryDirectory() as folder:
        step = first_step(COMPILED, threads, folder)  # its first call fills the folder
        return {COLD: [step()], **take_turns({WARM: step}, rounds, warmup=0)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds = 5 if options.quick else options.rounds
    variants = {
        "import offramp": importing,
        "offramp --help": whole("-m", "offramp", "--help"),
        "first step on digits": first_step(DIGITS, options.threads),
    }
    seconds = take_turns(variants, rounds, warmup=1)
    others = {} if options.quick else {name: whole("-c", code) for name, code in OTHERS.items()}
    loading = take_turns(others, rounds, warmup=1)
    compiling = {} if options.quick else compiled(rounds, options.threads)
    about = "first step of MSDNet-7, form compiled"
    goals: dict[str, Any] = {COLD: ("none", None), WARM: (f"under {READY_S:g} s", READY_S)}
    imports = [1000 * s for s in seconds["import offramp"]]
    return {
        "what": "start-up: seconds from the start of a process",
        **before,
        "rounds": rounds,
        "rows": [
            rows.value("import offramp, without torch", "ms", imports, f"under {IMPORT_MS:g} ms", below=IMPORT_MS),
            rows.value("offramp --help", "s", seconds["offramp --help"], f"under {HELP_S:g} s", below=HELP_S),
            rows.value(
                "first step on digits", "s", seconds["first step on digits"], f"under {STEP_S:g} s", below=STEP_S
            ),
            *(
                rows.value(f"{about}, {when}", "s", times, goals[when][0], below=goals[when][1])
                for when, times in compiling.items()
            ),
        ],
        "seconds": {name: rows.spread(times) for name, times in {**seconds, **loading, **compiling}.items()},
    }


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=11, threads=1)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
