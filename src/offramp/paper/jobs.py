"""Runs of a study: the loop over tasks, whatever does them, and processes of this machine that do some side by side."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from offramp import trust
from offramp.config import Run
from offramp.errors import OfframpError
from offramp.files import RunFolder
from offramp.json_files import convert, parse
from offramp.paper.identity import run_name
from offramp.paper.manifest import Manifest
from offramp.terminal import Screen, duration_in_words, escaped

JOB = "offramp.commands.job"  # run as a program, because it uses commands, which stand above this room
PAUSE = 0.2  # seconds between two looks at the processes
QUIET = 600.0  # seconds after which a log file gets another line
ALL_FAIL = 3  # failures before any success, after which the rest is not tried: data that are missing, say


@dataclass(frozen=True, eq=False)
class Task:
    """A run to be done, and about how much work it is (`estimate.operations`).

    `before`: the run that it begins with, whose folder lies beside its own.
    """

    run: Run
    folder: Path
    operations: float
    before: Run | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.run)

    def share_done(self) -> float:
        """How much of it is done, by its epochs."""
        folder = RunFolder(self.folder)
        if folder.weights.is_file():
            return 1.0
        if not folder.metrics.is_file():
            return 0.0
        return len(folder.metrics.read_bytes().splitlines()) / self.run.training.epochs

    @property
    def failed_before(self) -> bool:
        """Whether it failed when it was tried last."""
        return _mark_of(self).is_file()


Finished = Callable[[Task, Manifest], None]
Step = tuple[Task, Manifest | str] | str | None
Runner = Callable[[list[Task]], Generator[Step]]
"""Does tasks, taking each off the list once it cannot be withdrawn; closing the generator stops what is running.

It gives each task with its manifest or the reason why it failed, notes for the board, and None where nothing happened.
"""


def do_all(tasks: Sequence[Task], runner: Runner, finished: Finished, before: int) -> None:
    """Do all tasks. A run that fails does not keep the others from being done, unless the first ones all fail.

    Args:
        tasks: In the order in which they are begun.
        finished: Called with each task that is done and its manifest.
        before: How many runs of the study were done before.

    Raises:
        OfframpError: Which runs failed, and where their logs are.
    """
    waiting, failed, done, untried = list(tasks), list[Task](), before, 0
    with contextlib.closing(runner(waiting)) as steps, Board(tasks) as board:
        for step in steps:
            if isinstance(step, str):
                board.note(step)
            elif step is not None:
                task, result = step
                mark(task, failed=isinstance(result, str))
                if isinstance(result, str):
                    failed.append(task)
                    board.note(f"Failed: {task.name}: {result}")
                else:
                    done += 1
                    finished(task, result)
                    board.note(f"Done: {task.name}")
            if not done and len(failed) >= ALL_FAIL:
                untried += len(waiting)
                waiting.clear()
            board.show()
    if failed:
        logs = ", ".join(str(log_of(task)) for task in failed)
        rest = f", and {untried} were not tried" if untried else "; the others are kept"
        raise OfframpError(f"{len(failed)} of the runs failed{rest}. Their logs: {logs}.")


def do_here(tasks: Sequence[Task], jobs: int, threads: int, finished: Finished, *, before: int = 0) -> None:
    """Do all tasks on this machine, `jobs` processes at a time with `threads` threads each; see `do_all`.

    Children stop, saving, when this process ends.
    """
    do_all(tasks, lambda waiting: _processes(waiting, jobs, threads), finished, before)


def _processes(waiting: list[Task], jobs: int, threads: int) -> Generator[Step]:
    running = dict[Task, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running[task] = _start(task, jobs, threads)
                yield f"Started {task.name}"
            time.sleep(PAUSE)
            yield None
            for task, process in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[task]
                    process.communicate()  # closes the pipe
                    done = RunFolder(task.folder).manifest
                    yield task, Manifest.load(done) if status == 0 else f"status {status}: {_last_line(task)}"
    finally:
        for process in running.values():  # after Ctrl-C: all of them save and leave
            assert process.stdin is not None
            process.stdin.close()
        for process in running.values():
            process.wait()


def mark(task: Task, *, failed: bool) -> None:
    """Keep beside its log whether the task failed, so that next time it is tried after the others."""
    if failed:
        _mark_of(task).parent.mkdir(parents=True, exist_ok=True)
        _mark_of(task).touch()
    else:
        _mark_of(task).unlink(missing_ok=True)


def _mark_of(task: Task) -> Path:
    return task.folder.parent / f"{task.name}.failed"


def log_of(task: Task) -> Path:
    """The log file of a task."""
    return task.folder.parent / f"{task.name}.log"


def _last_line(task: Task) -> str:
    lines = log_of(task).read_text(errors="replace").splitlines()
    return lines[-1] if lines else "its log is empty"


def _start(task: Task, jobs: int, threads: int) -> "subprocess.Popen[bytes]":
    """A process that does the task; its output is appended to the task's log."""
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(task), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", JOB],  # -P: without the folder one works in
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | trust.environment(),
            start_new_session=True,  # Ctrl-C is for this process; two signals would be one too many
        )
    assert process.stdin is not None
    process.stdin.write(f"{to_json_line(task.run, task.folder, jobs, task.before)}\n".encode())
    process.stdin.flush()  # and kept open: its end is the sign that this process is gone
    return process


@dataclass(frozen=True)
class _Job:
    run: Run
    folder: str
    jobs: int
    before: Run | None = None


def to_json_line(run: Run, folder: Path, jobs: int, before: Run | None = None) -> str:
    """A job as its process reads it."""
    return json.dumps(msgspec.to_builtins(_Job(run, str(folder), jobs, before)))


def from_json_line(text: str) -> tuple[Run, Path, int, Run | None]:
    """The inverse of `to_json_line`."""
    job = convert(parse(text, "The job"), _Job, "The job")
    return job.run, Path(job.folder), job.jobs, job.before


class Board:
    """A bar over all work with the time left, in a terminal; lines in a log file. On standard error."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.total = tasks, sum(task.operations for task in tasks)
        self.done_before = self._done()
        self.started = time.monotonic()
        self.console = Screen(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.1f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.line = self.bar.add_task(self._count(), total=self.total or 1, left="")
        self.looked = 0.0
        self.spoke = self.started

    def __enter__(self) -> "Board":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """A line of its own, with what is left."""
        self.spoke = time.monotonic()
        self.console.print(f"{escaped(text)}{self._left()}", markup=False, soft_wrap=True)

    def show(self) -> None:
        """Bring the bar up to date, once a second at most."""
        if time.monotonic() - self.looked > 1:
            self.looked = time.monotonic()
            self.bar.update(self.line, completed=self._done(), description=self._count(), left=self._left())
            if not self.console.is_terminal and self.looked - self.spoke > QUIET:
                self.note(self._count())

    def _count(self) -> str:
        done = sum(task.share_done() >= 1 for task in self.tasks)
        return f"{done} of {len(self.tasks)} runs"

    def _done(self) -> float:
        return sum(task.operations * task.share_done() for task in self.tasks)

    def _left(self) -> str:
        """Time left at the rate so far; nothing before there is one."""
        done = self._done()
        gained = done - self.done_before
        if gained <= 0:
            return ""
        left = (self.total - done) * (time.monotonic() - self.started) / gained
        return f"; about {duration_in_words(left)} left" if left > 0 else ""
