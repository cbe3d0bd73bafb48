"""Train with real `kill -9` at random moments: `python kills.py WORK_DIR KILLS SEED TRAIN_ARGUMENTS...`

One process imports everything and forks a child for every attempt, so that an attempt costs what it trains. A child is
killed by the clock, or kills itself inside a save, a rename, an evaluation or between epochs. Prints one JSON object:
the kills by kind, how many left a file half written, how many starts went on from a checkpoint, and the names of the
files that differ from those of a run never interrupted.
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

import sklearn.datasets  # noqa: F401  # as others here, so that no child has to: it would take longer than the training
import torch
import torch._dynamo

from offramp import backbones, data, objectives, processes, rules  # noqa: F401
from offramp.cli import main
from offramp.training import loop

SUICIDES: dict[str, tuple[Any, str]] = {
    "in a write": (os, "fsync"),
    "at a rename": (os, "replace"),
    "in an evaluation": (loop, "watch"),
    "in a step": (processes, "sum_over_all"),
    "between checkpoint and metrics": (loop, "write_atomically"),
}


def nothing() -> None:
    """Change nothing in a child."""


def attempt(
    arguments: list[str], log: Path, prepare: Callable[[], None] = nothing, seconds: float | None = None
) -> int:
    """Run one child, which writes its messages to `log`; its wait status. `seconds`: when to kill it."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        prepare()
        with open(os.devnull, "w") as sys.stdout, open(log, "a") as sys.stderr:
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


def torture(
    folder: Path, num_kills: int, seed: int, train_arguments: list[str], sabotage: Callable[[], None] = nothing
) -> dict[str, Any]:
    """An undisturbed run beside one that is killed up to `num_kills` times, fewer where it is finished before.

    `sabotage` is called in each child of the run that is killed: a control, which has to make a difference.
    """
    calm, tortured, log = folder / "calm", folder / "tortured", folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    assert attempt([*train_arguments, "--out", str(calm)], log) == 0, log.read_text()
    duration = time.monotonic() - started
    rng = random.Random(seed)
    kills: collections.Counter[str] = collections.Counter()
    half_written: set[Path] = set()
    in_writes = 0
    arguments = [*train_arguments, "--out", str(tortured)]
    while kills.total() < num_kills and not (tortured / "weights.safetensors").exists():
        kind = rng.choice(["by the clock", "by the clock", *SUICIDES])
        seconds = None
        if kind == "by the clock":
            prepare, seconds = sabotage, rng.uniform(0, duration / num_kills)
        else:
            fall = suicide(kind, rng.randint(1, 8), rng.random() < 0.5)

            def prepare(fall: Callable[[], None] = fall) -> None:
                sabotage()
                fall()

        status = attempt(arguments, log, prepare, seconds)
        if os.WIFSIGNALED(status):
            left = set(tortured.rglob("*.part"))
            kills[kind] += 1
            in_writes += bool(left - half_written)
            half_written |= left
    assert attempt(arguments, log, sabotage) == 0, log.read_text()
    kept = ("*.safetensors", "metrics.jsonl", "checkpoints/*")  # final and best weights, metrics, optimiser states
    names = [str(path.relative_to(calm)) for pattern in kept for path in calm.glob(pattern)]
    different = [n for n in names if (calm / n).read_bytes() != (tortured / n).read_bytes()]
    return {
        "kills": kills.total(),
        "kinds": dict(kills),
        "in_writes": in_writes,
        "continued": log.read_text().count("Continuing after "),
        "compared": sorted(names),
        "different": different,
    }


if __name__ == "__main__":
    print(json.dumps(torture(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
