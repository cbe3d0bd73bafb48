"""Train with real `kill -9` at random moments: `python torture.py WORK_DIR KILLS SEED TRAIN_ARGUMENTS...`

One process imports everything and forks a child for every attempt, so that an attempt costs what it trains. A child is
killed by the clock, or kills itself inside a save, a rename, an evaluation or between epochs. Prints one JSON object:
the kills by kind, and the names of the files that differ from those of a run never interrupted.
"""

import collections
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from offramp import processes
from offramp.cli import main
from offramp.training import loop

SUICIDES: dict[str, tuple[Any, str]] = {
    "in a write": (os, "fsync"),
    "at a rename": (os, "replace"),
    "in an evaluation": (loop, "watch"),
    "in a step": (processes, "sum_over_all"),
    "between checkpoint and metrics": (loop, "write_atomically"),
}


def attempt(arguments: list[str], prepare: Callable[[], None] = lambda: None, seconds: float | None = None) -> int:
    """Run one child; its wait status. `seconds`: when to kill it."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        prepare()
        with open(os.devnull, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:
            os._exit(main(arguments))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def suicide(kind: str, call: int, after: bool) -> Callable[[], None]:
    """Make a child kill itself before or after the given call of a function."""
    module, name = SUICIDES[kind]
    original = getattr(module, name)
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return lambda: setattr(module, name, wrapper)


def torture(folder: Path, num_kills: int, seed: int, train_arguments: list[str]) -> dict[str, Any]:
    """An undisturbed run beside one that is killed `num_kills` times."""
    calm, tortured = folder / "calm", folder / "tortured"
    started = time.monotonic()
    assert attempt([*train_arguments, "--out", str(calm)]) == 0
    duration = time.monotonic() - started
    rng = random.Random(seed)
    kills: collections.Counter[str] = collections.Counter()
    arguments = [*train_arguments, "--out", str(tortured)]
    while kills.total() < num_kills and not (tortured / "weights.safetensors").exists():
        kind = rng.choice(["by the clock", "by the clock", *SUICIDES])
        if kind == "by the clock":
            status = attempt(arguments, seconds=rng.uniform(0, duration / num_kills))
        else:
            status = attempt(arguments, prepare=suicide(kind, rng.randint(1, 8), rng.random() < 0.5))
        kills[kind] += os.WIFSIGNALED(status)
    assert attempt(arguments) == 0
    kept = ("*.safetensors", "metrics.jsonl", "checkpoints/*")  # final and best weights, metrics, optimiser states
    names = [str(path.relative_to(calm)) for pattern in kept for path in calm.glob(pattern)]
    different = [n for n in names if (calm / n).read_bytes() != (tortured / n).read_bytes()]
    return {"kills": kills.total(), "kinds": dict(kills), "compared": sorted(names), "different": different}


if __name__ == "__main__":
    print(json.dumps(torture(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
