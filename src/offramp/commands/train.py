"""`offramp train`: a run, or several that differ in their seed."""

import dataclasses
import os
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from offramp.checks import whole
from offramp.commands.options import Flag, OpensRuns
from offramp.config import Run
from offramp.files import RunFolder, is_finished
from offramp.terminal import say

PAPERS_DATA = ("cifar10", "cifar100", "imagenet")  # of `offramp.paper`, which takes long to import


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OpensRuns):
    """Train a network into a run's folder.

    The same command again continues a run that was interrupted.
    """

    run: tyro.conf.OmitArgPrefixes[Run]
    """What to train."""
    out: Annotated[str | Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the run."""
    seeds: Annotated[int, whole(1)] = 1
    """Number of runs that differ in their seed only, one after another, in DIR/seed-0, DIR/seed-1, ..."""
    overwrite: Flag = False
    """Remove a run of another configuration that DIR holds. One of the same configuration is continued."""

    def main(self) -> None:
        if self.seeds == 1:
            runs = {str(self.out): self.run}
        else:
            first = self.run.training.seed
            seeds = [dataclasses.replace(self.run.training, seed=seed) for seed in range(first, first + self.seeds)]
            runs = {f"{self.out}/seed-{one.seed}": dataclasses.replace(self.run, training=one) for one in seeds}
        for number, (out, run) in enumerate(runs.items(), 1):
            if len(runs) > 1:
                say(f"Seed {run.training.seed}, run {number} of {len(runs)}")
            if os.environ.get("WORLD_SIZE", "1") == "1" and is_finished(RunFolder(out), run):
                say(f"{RunFolder(out).path} is finished; nothing to do.")
            else:
                from offramp.training import train

                if run.data.source.name in PAPERS_DATA and os.environ.get("RANK", "0") == "0":
                    from offramp.paper.recipe import unlike_the_papers  # 0.7 s, which other data need not wait for

                    if differences := unlike_the_papers(run):
                        say(differences)
                train(run, out, overwrite=self.overwrite)
        if self.json and os.environ.get("RANK", "0") == "0":  # of several processes the first
            last = {out: dataclasses.asdict(RunFolder(out).read_metrics()[-1]) for out in runs}
            print(dumps({"runs": [{"run": out, "last_epoch": epoch} for out, epoch in last.items()]}))
