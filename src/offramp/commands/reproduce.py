"""`offramp reproduce`: tables and figures of the paper, and our own study."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from offramp.checks import ABOVE_0, whole
from offramp.commands.options import Flag, OpensRuns, several
from offramp.config import FormName, SpecFlag, unset
from offramp.terminal import duration_in_words, escaped, say, short

if TYPE_CHECKING:
    from offramp.paper.experiments import Experiment
    from offramp.paper.jobs import Task
    from offramp.paper.study import Study

RESULTS = Path("docs", "results")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(OpensRuns):
    """Train a table or figure of the paper, and compare the numbers.

    Ours stand beside the published ones, with verdicts.

    Runs that are finished are not run again, runs that were killed go on. Writes DIR/NAME.html and DIR/NAME.md.
    """

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], several("TABLE|FIGURE")] = field(kw_only=False)
    """table1 to table8, figure3, figure4, league, league-imagenet, or all of these;
    the leagues: all methods in the settings of Table 1 and of Figure 4;
    study: our own comparison; pilot: what decides on each method's number for it."""
    scale: Annotated[str, tyro.conf.arg(metavar="paper|pocket|pairs|...")] = "paper"
    """paper: CIFAR and ImageNet, the recipe to the letter; pocket: Fashion-MNIST, minutes a run;
    pairs, pairs-short (for its pilot), pairs-few: fashion-pairs (100 classes), minutes a run;
    pairs-wide: the same, over an hour a run; package.module:Name: a Scale of your own."""
    seeds: Annotated[int, whole(1)] = 5
    """Number of seeds of every row."""
    first_seed: Annotated[int, whole(0)] = 0
    """The first of them, so that a study can be done in pieces."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("reproduce")
    """Folder of the study: runs, manifests, pages."""
    known: tyro.conf.UseAppendAction[Annotated[tuple[tuple[Path, ...], ...], tyro.conf.arg(metavar="DIR")]] = ()
    """Folders with manifests of runs done elsewhere (default: docs/results, where it is there)."""
    only: tyro.conf.UseAppendAction[Annotated[tuple[tuple[str, ...], ...], tyro.conf.arg(metavar="ROW")]] = ()
    """Only these rows, by the names that they have in the tables."""
    also: tyro.conf.UseAppendAction[tuple[SpecFlag, ...]] = ()
    """A method of your own in every table: an objective or a rule, NAME [KEY=VALUE ...]."""
    times: int = 1
    """So many times the scale's epochs."""
    root: Annotated[str | None, unset("DIR")] = None
    """Folder that holds the data set's files."""
    workers: int = 0
    """Worker processes of each run that decode images."""
    jobs: Annotated[int, whole(1)] = 1
    """Runs side by side on this machine."""
    threads: Annotated[int | None, whole(1), unset("INT")] = None
    """CPU threads of each; by default the cores are shared out evenly."""
    form: FormName = "auto"
    """How networks are run in training, as in `offramp train`.
    Runs of one network compile it once: compiled may pay for many where it would not for one."""
    on: Literal["here", "ray"] = "here"
    """here (processes of this machine), or ray (a Ray cluster; extra `ray`)."""
    dry_run: Flag = False
    """Train nothing; list tables and figures with the estimated hours, and their rows."""
    page_only: Flag = False
    """Train nothing; write the page of what is there."""
    rate: Annotated[float | None, ABOVE_0, unset("OPERATIONS")] = None
    """Operations a second of training that the estimates go by; by default it is measured for a second."""

    def main(self) -> None:
        from offramp.paper.page import write
        from offramp.paper.scales import scale
        from offramp.paper.study import Study

        threads = self.threads or _threads(self.jobs)
        study = Study(
            names=self.what,
            scale=scale(self.scale).times(self.times),
            seeds=tuple(range(self.first_seed, self.first_seed + self.seeds)),
            out=self.out,
            known=tuple(itertools.chain(*self.known)) or ((RESULTS,) if RESULTS.is_dir() else ()),
            only=tuple(itertools.chain(*self.only)),
            also=self.also,
            root=self.root,
            workers=self.workers,
            form=self.form,
        )
        if self.dry_run:
            _list(study, self.rate or _measured(study, self.jobs, threads), self.jobs, as_json=self.json)
            return
        if self.on == "ray" and not self.page_only:
            from offramp.paper.on_ray import installed

            installed()  # said before anything is announced or written
        try:
            with _stopped_by_sigterm():
                if not self.page_only:
                    _run(study, self.rate, self.jobs, threads, self.on)
        except (KeyboardInterrupt, SystemExit):
            say("Stopped; the same command continues.")
            raise
        finally:  # also where some runs failed, or it was stopped: what is there is shown
            written = [*write(study), *filter(None, [study.decide()])]
            if self.json:
                print(dumps({"written": list(map(str, written))}))
            else:
                print(*map(escaped, written), sep="\n")


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does: runs save and leave, the page is written. A second acts at once."""
    from offramp.training import StoppedError

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        raise StoppedError(number)

    if threading.current_thread() is not threading.main_thread():  # Python sets signal handlers nowhere else
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _threads(jobs: int) -> int:
    """For each of so many runs: what the environment says, else an even share of the cores."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else max(1, (os.cpu_count() or 1) // jobs)


def _list(study: "Study", rate: float, jobs: int, *, as_json: bool) -> None:
    """What there is, what is missing, and how long that takes."""
    from offramp.paper.study import distinct
    from offramp.show.terminal import console, ruled_table

    manifests = study.manifests()
    if as_json:
        missing = {one.name: study.tasks(manifests, [one]) for one in study.experiments}
        hours = {name: sum(task.operations for task in tasks) / rate / 3600 for name, tasks in missing.items()}
        rows = {one.name: [row.label for row in one.rows] for one in study.experiments}
        about = {
            name: {"missing": len(tasks), "hours": hours[name], "rows": rows[name]} for name, tasks in missing.items()
        }
        print(dumps(about))
        return
    table = ruled_table("", "what", "rows", "runs", "missing", "about", left=2)
    for experiment in study.experiments:
        tasks, runs = study.tasks(manifests, [experiment]), len(distinct([experiment])) * len(study.seeds)
        counts = map(str, (len(experiment.rows), runs, len(tasks)))
        table.add_row(experiment.name, experiment.title, *counts, _time(tasks, rate))
    table.add_section()
    tasks, runs = study.tasks(manifests), len(distinct(study.experiments)) * len(study.seeds)
    table.add_row("all", "each run once", "", str(runs), str(len(tasks)), _time(tasks, rate))
    console().print(table)
    for experiment in study.experiments:
        print(escaped(f"{experiment.name}: {_rows(experiment)}."))
    print(escaped(f"{study.scale.name}: {study.scale.about}"))
    print(
        f"Times are estimates, good for a factor of two or three: operations of the missing runs over {short(rate)} "
        f"operations a second ({jobs} side by side)."
    )


def _rows(experiment: "Experiment") -> str:
    """Its rows by name, the paper's first where it has some."""
    papers, others = ([row.label for row in experiment.rows if row.in_paper is of] for of in (True, False))
    beside = f"; not in the paper: {'; '.join(others)}" if papers and others else "; ".join(others)
    return f"{'; '.join(papers)}{beside}"


def _measured(study: "Study", jobs: int, threads: int) -> float:
    from offramp.paper.estimate import measured_rate

    return jobs * measured_rate(study.experiments[0].rows[0].setting, threads)


def _time(tasks: "Sequence[Task]", rate: float) -> str:
    return duration_in_words(sum(task.operations for task in tasks) / rate) if tasks else "done"


def _run(study: "Study", rate: float | None, jobs: int, threads: int, on: str) -> None:
    """Do what is missing; the page is written also where some of it failed."""
    from offramp.commands.job import work
    from offramp.paper.jobs import do_here
    from offramp.paper.on_ray import do_on_ray

    manifests = study.manifests()
    tasks, before = study.tasks(manifests), study.done(manifests)
    if not tasks:
        return
    if on == "ray":
        say(f"{len(tasks)} runs to do on Ray, {threads} threads each.")
        study.do(tasks, lambda waiting, finished: do_on_ray(waiting, threads, finished, work, before=before))
        return
    about = _time(tasks, rate or _measured(study, jobs, threads))
    say(f"{len(tasks)} runs to do, about {about}, {jobs} side by side, {threads} threads each.")
    study.do(tasks, lambda waiting, finished: do_here(waiting, jobs, threads, finished, before=before))
