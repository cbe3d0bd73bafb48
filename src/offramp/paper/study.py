"""A study: experiments at a scale, with some seeds, in a folder. What is done is kept, what is missing is run.

DIR/runs/NAME/          a run's folder, as `offramp train` makes it, and beside it NAME.log
DIR/runs/NAME.failed    there where the run failed when it was tried last
DIR/manifests/NAME.json what a finished run leaves; fit to be committed
DIR/STUDY.html, .md     the page
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offramp.checks import did_you_mean
from offramp.config import FormName, Run, Spec
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.paper import early_exits, estimate, pilot
from offramp.paper.experiments import ALL, EXPERIMENTS, Experiment, Row, experiments
from offramp.paper.identity import in_form, run_hash, run_name
from offramp.paper.jobs import Finished, Task
from offramp.paper.manifest import Manifest, find
from offramp.paper.methods import own
from offramp.paper.scales import Scale

Doing = Callable[[Sequence[Task], Finished], None]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is to be reproduced, and where.

    Attributes:
        seeds: Every row is trained with each.
        known: Further folders with manifests.
        only: Rows to run and show, by label; all if empty.
        also: Methods that join every experiment.
        form: In which runs are trained (`TrainConfig.form`).
    """

    names: tuple[str, ...]
    scale: Scale
    seeds: tuple[int, ...]
    out: Path
    known: tuple[Path, ...] = ()
    only: tuple[str, ...] = ()
    also: tuple[Spec, ...] = ()
    root: str | None = None
    workers: int = 0
    form: FormName = "auto"
    experiments: tuple[Experiment, ...] = field(init=False)
    left_out: Mapping[str, tuple[str, ...]] = field(init=False)
    """Rows that were not asked for, by experiment; of one that is left out whole all of them."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UsageError("A study needs at least one seed.")
        extra = [own(spec) for spec in self.also]
        scale = self.scale
        if "study" in self.names:
            scale = dataclasses.replace(scale, chosen=pilot.chosen(scale, self._manifest_folders))
        all_experiments = [experiment.with_methods(extra) for experiment in experiments(self.names, scale)]
        chosen = self._chosen(all_experiments)
        object.__setattr__(self, "experiments", tuple(experiment for experiment in chosen if experiment.rows))
        left = {
            every.name: tuple(row.label for row in every.rows if row not in some.rows)
            for every, some in zip(all_experiments, chosen, strict=True)
        }
        object.__setattr__(self, "left_out", {name: labels for name, labels in left.items() if labels})

    def _chosen(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        rows = [row for experiment in experiments for row in experiment.rows]
        labels = dict.fromkeys(label for row in rows for label in (row.label, *row.aliases))
        for label in self.only:
            if label not in labels:
                raise UsageError(f"No row is called {label!r}.{did_you_mean(label, list(labels))}")
        if not self.only:
            return list(experiments)
        return [
            dataclasses.replace(experiment, rows=tuple(row for row in experiment.rows if row.is_called(self.only)))
            for experiment in experiments
        ]

    @property
    def title(self) -> str:
        """The page's name, without its ending: `table1-pocket`."""
        names = [ALL] if ALL in self.names else [name for name in EXPERIMENTS if name in self.names]
        return "-".join([*names, self.scale.name])

    @property
    def folder(self) -> Path:
        """Of the runs."""
        return self.out / "runs"

    def manifests(self) -> dict[str, Manifest]:
        """What is finished, here or elsewhere, by hash."""
        for folder in self.known:
            if not folder.is_dir():
                raise UsageError(f"There is no folder {folder} with manifests.")
        return find(self._manifest_folders)

    def completed(self, manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
        """The same, with what those of older runs lack and the runs' folders here still tell; it is kept."""
        whole = dict(manifests)
        experiments = [experiment for experiment in self.experiments if early_exits.shown(experiment)]
        for run in (row.with_seed(seed) for row in distinct(experiments) for seed in self.seeds):
            if (manifest := manifests.get(run_hash(run))) is not None:
                more = manifest.completed(RunFolder(self.folder / run_name(run)))
                if more is not manifest:
                    path = self.out / "manifests" / f"{run_name(run)}.json"
                    more.save(path)
                    whole[run_hash(run)] = dataclasses.replace(more, path=path)
        return whole

    @property
    def _manifest_folders(self) -> list[Path]:
        return [self.out / "manifests", *self.known]

    def decide(self) -> Path | None:
        """Keep what the pilot says once all of it is done, and give the file; None before, or where it is no pilot."""
        experiment = next((each for each in self.experiments if each.name == "pilot"), None)
        manifests = self.manifests()
        if experiment is None or self.left_out or self.tasks(manifests, [experiment]):
            return None
        by_label = {
            row.label: [manifests[run_hash(row.with_seed(seed))] for seed in self.seeds] for row in experiment.rows
        }
        return pilot.save(pilot.decide(by_label, self.scale.name, self.seeds), self.out / "manifests")

    def tasks(self, manifests: Mapping[str, Manifest], of: Sequence[Experiment] | None = None) -> list[Task]:
        """The missing runs of all experiments, or of some, each once; first all rows' first seed, and so on.

        Those that failed before come last: what is missing for them must keep nothing else from being done.
        """
        missing: dict[str, Task] = {}
        for seed in self.seeds:
            for row in distinct(self.experiments if of is None else of):
                run = row.with_seed(seed)
                if run_hash(run) not in manifests:
                    folder, before = self.folder / run_name(run), row.before_with_seed(seed)
                    first = None if before is None else self._placed(before)
                    missing[run_hash(run)] = Task(self._placed(run), folder, estimate.operations(row), first)
        return sorted(missing.values(), key=lambda task: task.failed_before)

    def _placed(self, run: Run) -> Run:
        data = dataclasses.replace(run.data, root=self.root, workers=self.workers)
        return in_form(dataclasses.replace(run, data=data), self.form)

    def done(self, manifests: Mapping[str, Manifest]) -> int:
        """How many of its runs are finished, each counted once."""
        runs = (row.with_seed(seed) for row in distinct(self.experiments) for seed in self.seeds)
        return sum(run_hash(run) in manifests for run in runs)

    def do(self, tasks: Sequence[Task], doing: Doing) -> None:
        """Do what is missing; each finished run's manifest is kept at once."""

        def finished(task: Task, manifest: Manifest) -> None:
            manifest.save(self.out / "manifests" / f"{task.name}.json")

        doing(tasks, finished)


def distinct(experiments: Sequence[Experiment]) -> list[Row]:
    """The rows of several experiments, each run once."""
    rows = dict[str, Row]()
    for experiment in experiments:
        for row in experiment.rows:
            rows.setdefault(run_hash(row.run), row)
    return list(rows.values())
