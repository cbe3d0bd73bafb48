"""`offramp train`."""

import dataclasses
from typing import Annotated

import tyro

from offramp.cli.before_torch import before_torch
from offramp.config import Run
from offramp.errors import UsageError
from offramp.terminal import say


def train(
    run: tyro.conf.OmitArgPrefixes[Run],
    *,
    out: Annotated[str, tyro.conf.arg(metavar="DIR")],
    seeds: int = 1,
) -> None:
    """Train a network into a run's folder. The same command again continues a run that was interrupted.

    Args:
        run: What to train.
        out: Folder of the run.
        seeds: Number of runs that differ in their seed only, one after another, in DIR/seed-0, DIR/seed-1, ...
    """
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, not {seeds}.")
    before_torch()
    from offramp.training import train as train_one

    if seeds == 1:
        train_one(run, out)
        return
    first = run.training.seed
    for seed in range(first, first + seeds):
        say(f"Seed {seed}, the {seed - first + 1}. of {seeds}")
        training = dataclasses.replace(run.training, seed=seed)
        train_one(dataclasses.replace(run, training=training), f"{out}/seed-{seed}")
