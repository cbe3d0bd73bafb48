"""One job of `offramp reproduce`: train a run, measure it, leave its manifest; as a process, ended with its starter."""

import contextlib
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from offramp import trust
from offramp.commands.evaluate import EvaluateOptions, evaluate
from offramp.config import Run, to_json
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.files.evaluation import current
from offramp.paper.identity import in_form, run_name, second_stage
from offramp.paper.jobs import from_json_line
from offramp.paper.manifest import Manifest
from offramp.terminal import say, say_error
from offramp.training import train


def work(run: Run, folder: Path, jobs: int = 1, first: Run | None = None) -> Manifest:
    """Train `run` in `folder` from where it stands, evaluate it, and write its manifest; `jobs` go on side by side.

    `first`: the run that it begins with, in a folder beside; it is done before where it is not.
    """
    if first is not None:
        beside = folder.parent / run_name(first)
        if not RunFolder(beside).manifest.is_file():
            work(first, beside, jobs)
        run = second_stage(run, beside)
    with _alone(folder):
        place, before = RunFolder(folder), os.getloadavg()[0]
        begun = place.config.is_file()
        if begun:  # it goes on in the form that it was begun in
            run = in_form(run, place.read_config().values["training"]["form"])
        train(run, folder)
        load = None if begun else (before, os.getloadavg()[0])  # of a continued run the first part is unknown
        with trust.allowing(trust.packages_in(to_json(run))):  # the user named them, wherever this machine keeps that
            asked = EvaluateOptions(folder, root=run.data.root)
            figures = current(place) or evaluate(asked, page=False).summary()
        manifest = Manifest.of(run, place, figures, jobs, load)
        manifest.save(manifest.path)
    return manifest


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for a process that works at the same run: an orphan that is still saving, or the same command elsewhere."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process works at {folder}; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Read a job from the first line of standard input, and do it; stop, saving, when standard input ends."""
    run, folder, jobs, first = from_json_line(_first_line())
    threading.Thread(target=_stop_with_the_starter, daemon=True).start()
    try:
        work(run, folder, jobs, first)
    except (OfframpError, UsageError) as error:
        say_error(f"offramp: {error}")
        return 1
    return 0


def _first_line() -> str:
    """Not by `sys.stdin`: its lock, held by a thread that reads on, would be in the way when the process ends."""
    content = b""
    while not content.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise UsageError("No job on standard input.")
        content += byte
    return content.decode()


def _stop_with_the_starter() -> None:
    """The pipe ends when the process at its other end does, `kill -9` included."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
