"""`offramp train`: a run, or several that differ in their seed."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from offramp.commands.before_torch import before_torch
from offramp.commands.options import Flag, OpensRuns
from offramp.config import Run
from offramp.errors import UsageError
from offramp.terminal import say


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OpensRuns):
    """Train a network into a run's folder. The same command again continues a run that was interrupted."""

    run: tyro.conf.OmitArgPrefixes[Run]
    """What to train."""
    out: Annotated[str | Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the run."""
    seeds: int = 1
    """Number of runs that differ in their seed only, one after another, in DIR/seed-0, DIR/seed-1, ..."""
    overwrite: Flag = False
    """Remove a run of another configuration that DIR holds. One of the same configuration is continued."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, not {self.seeds}.")

    def main(self) -> None:
        """See `Options.main`."""
        before_torch()
        from offramp.training import train

        if self.seeds == 1:
            train(self.run, self.out, overwrite=self.overwrite)
            return
        first = self.run.training.seed
        for seed in range(first, first + self.seeds):
            say(f"Seed {seed}, the {seed - first + 1}. of {self.seeds}")
            training = dataclasses.replace(self.run.training, seed=seed)
            train(dataclasses.replace(self.run, training=training), f"{self.out}/seed-{seed}", overwrite=self.overwrite)
