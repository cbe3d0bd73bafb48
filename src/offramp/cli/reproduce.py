"""`offramp reproduce`."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from offramp.config import SpecFlag
from offramp.errors import UsageError
from offramp.terminal import escaped, say

if TYPE_CHECKING:
    from offramp.reproduce.jobs import Task
    from offramp.reproduce.study import Study

RESULTS = Path("docs", "results")


def reproduce(
    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TABLE|FIGURE")],
    *,
    scale: Annotated[str, tyro.conf.arg(metavar="paper|pocket")] = "paper",
    seeds: int = 5,
    first_seed: int = 0,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("reproduce"),
    known: tyro.conf.UseAppendAction[Annotated[tuple[tuple[Path, ...], ...], tyro.conf.arg(metavar="DIR")]] = (),
    only: tyro.conf.UseAppendAction[Annotated[tuple[tuple[str, ...], ...], tyro.conf.arg(metavar="ROW")]] = (),
    also: tyro.conf.UseAppendAction[tuple[SpecFlag, ...]] = (),
    times: int = 1,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    workers: int = 0,
    jobs: int = 1,
    threads: int | None = None,
    on: Literal["here", "ray"] = "here",
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    page_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    rate: Annotated[float | None, tyro.conf.arg(metavar="OPERATIONS")] = None,
) -> None:
    """Train what a table or figure of the paper is made of, and show it beside the published numbers, with verdicts.

    Runs that are finished are not run again, runs that were killed go on. Writes DIR/NAME.html and DIR/NAME.md.

    Args:
        what: table1 to table8, figure3, figure4, league (all methods in Table 1's setting), or all.
        scale: paper (CIFAR and ImageNet, the recipe to the letter), pocket (Fashion-MNIST, minutes a run), or
            package.module:Name, a Scale of your own.
        seeds: Number of seeds of every row.
        first_seed: The first of them, so that a study can be done in pieces.
        out: Folder of the study: runs, manifests, pages.
        known: Folders with manifests of runs done elsewhere (default: docs/results, where it is there). Also repeated.
        only: Only these rows, by the names that they have in the tables. May be repeated.
        also: A method of your own in every table: an objective or a rule, NAME [KEY=VALUE ...]. May be repeated.
        times: So many times the scale's epochs.
        root: Folder that holds the data set's files.
        workers: Worker processes of each run that decode images.
        jobs: Runs side by side on this machine.
        threads: CPU threads of each; by default the cores are shared out evenly.
        on: here (processes of this machine), or ray (a Ray cluster; extra `ray`).
        dry_run: Train nothing; list tables and figures with the estimated hours.
        page_only: Train nothing; write the page of what is there.
        rate: Operations a second of training that the estimates go by; by default it is measured for a second.
    """
    least = {"seeds": (seeds, 1), "first-seed": (first_seed, 0), "jobs": (jobs, 1), "threads": (threads, 1)}
    for name, (value, bound) in least.items():
        if value is not None and value < bound:
            raise UsageError(f"{name} must be at least {bound}, not {value}.")
    if rate is not None and not rate > 0:
        raise UsageError(f"rate must be above 0, not {rate}.")
    threads = threads or _threads(jobs)
    from offramp.reproduce.page import write
    from offramp.reproduce.scales import scale as named
    from offramp.reproduce.study import Study

    study = Study(
        names=what,
        scale=named(scale).times(times),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        out=out,
        known=tuple(itertools.chain(*known)) or ((RESULTS,) if RESULTS.is_dir() else ()),
        only=tuple(itertools.chain(*only)),
        also=also,
        root=root,
        workers=workers,
    )
    if dry_run:
        _list(study, rate or _measured(study, jobs, threads), jobs)
        return
    if on == "ray" and not page_only:
        from offramp.reproduce.on_ray import installed

        installed()  # said before anything is announced or written
    try:
        with _stopped_by_sigterm():
            if not page_only:
                _run(study, rate, jobs, threads, on)
    except (KeyboardInterrupt, SystemExit):
        say("Stopped; the same command continues.")
        raise
    finally:  # also where some runs failed, or somebody stopped: what is there is shown
        for path in write(study):
            print(escaped(path))


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
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else max(1, (os.cpu_count() or 1) // jobs)


def _list(study: "Study", rate: float, jobs: int) -> None:
    """What there is, what is missing, and how long that takes."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from offramp.reports.figures import short
    from offramp.reports.terminal import console
    from offramp.reproduce.study import distinct

    manifests = study.manifests()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "what", "rows", "runs", "missing", "about"):
        table.add_column(name, justify="left" if name in ("", "what") else "right")
    for experiment in study.experiments:
        tasks, runs = study.tasks(manifests, [experiment]), len(distinct([experiment])) * len(study.seeds)
        counts = map(str, (len(experiment.rows), runs, len(tasks)))
        table.add_row(experiment.name, experiment.title, *counts, _time(tasks, rate))
    table.add_section()
    tasks, runs = study.tasks(manifests), len(distinct(study.experiments)) * len(study.seeds)
    table.add_row("all", "each run once", "", str(runs), str(len(tasks)), _time(tasks, rate))
    console().print(table)
    print(escaped(f"{study.scale.name}: {study.scale.about}"))
    print(
        f"Times are estimates, good for a factor of two or three: operations of the missing runs over {short(rate)} "
        f"operations a second ({jobs} side by side)."
    )


def _measured(study: "Study", jobs: int, threads: int) -> float:
    from offramp.reproduce.estimate import measured_rate

    return jobs * measured_rate(study.experiments[0].rows[0].setting, threads)


def _time(tasks: "Sequence[Task]", rate: float) -> str:
    from offramp.reports.durations import duration_in_words

    return duration_in_words(sum(task.operations for task in tasks) / rate) if tasks else "done"


def _run(study: "Study", rate: float | None, jobs: int, threads: int, on: str) -> None:
    """Do what is missing; the page is written also where some of it failed."""
    from offramp.reproduce.jobs import do_here
    from offramp.reproduce.on_ray import do_on_ray

    manifests = study.manifests()
    tasks, before = study.tasks(manifests), study.done(manifests)
    if not tasks:
        return
    if on == "ray":
        say(f"{len(tasks)} runs to do on Ray, {threads} threads each.")
        study.do(tasks, lambda waiting, finished: do_on_ray(waiting, threads, finished, before=before))
        return
    about = _time(tasks, rate or _measured(study, jobs, threads))
    say(f"{len(tasks)} runs to do, about {about}, {jobs} side by side, {threads} threads each.")
    study.do(tasks, lambda waiting, finished: do_here(waiting, jobs, threads, finished, before=before))
