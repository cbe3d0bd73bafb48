"""The same jobs on a Ray cluster: the one that is running, or one of this machine alone. Ray is an extra.

The study's folder has to be seen by all machines under the same path, or a run that loses its worker starts anew and
does not go on. Manifests come back by themselves.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp import trust
from offramp.config import Run
from offramp.errors import OfframpError, UsageError, needs
from offramp.files import RunFolder
from offramp.paper.jobs import Finished, Step, Task, do_all, from_json_line, log_of, to_json_line
from offramp.paper.manifest import Manifest
from offramp.terminal import say

Work = Callable[[Run, Path, int, Run | None], Manifest]
RETRIES = 20  # of a run whose worker is lost; each goes on where the last checkpoint stands


def do_on_ray(tasks: Sequence[Task], threads: int, finished: Finished, work: Work, *, before: int = 0) -> None:
    """Do all tasks on a Ray cluster, each with `threads` CPUs, and one GPU where the cluster has any.

    See `do_all`; `work` trains a run in a folder, beside so many others, and gives its manifest.

    Raises:
        UsageError: Ray is not installed, or no machine of the cluster has so many CPUs.
        OfframpError: Which runs failed.
    """
    ray = installed()
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, runtime_env={"env_vars": _environment(os.environ)})
    try:
        room, gpus = _room(ray.nodes(), threads)
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_in_worker)
        jobs = min(len(tasks), room)  # at most so many side by side
        refs = {remote.remote(work, _job_line(task, jobs), str(log_of(task).resolve())): task for task in tasks}
        do_all(tasks, lambda waiting: _collect(ray, refs, waiting), finished, before)
    finally:
        if started_here:
            ray.shutdown()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Environment variables by which workers, started in other folders, find the same code and data.

    `mine:Loss` is found in the folder one works in, as by the command itself.
    """
    path = [entry for entry in ours.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = trust.environment() | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, [os.getcwd(), *path]))}
    if ours.get("OFFRAMP_DATA"):
        environment["OFFRAMP_DATA"] = _absolute(ours["OFFRAMP_DATA"])
    return environment


def _room(nodes: Sequence[Mapping[str, Any]], threads: int) -> tuple[int, int]:
    """How many runs fit into a cluster at a time, and how many GPUs each gets: one where any machine has one.

    Raises:
        UsageError: Not one fits: Ray would wait silently, without end, for a larger machine.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [has for has in alive if has.get("GPU", 0) >= 1]
    largest = int(max((has.get("CPU", 0) for has in with_gpu or alive), default=0))
    if threads > largest:
        raise UsageError(
            f"threads is {threads}, but the largest machine of the Ray cluster{' with a GPU' if with_gpu else ''} has "
            f"{largest} CPUs: no run would ever begin."
        )
    at_once = (min(has.get("CPU", 0) // threads, has["GPU"] if with_gpu else math.inf) for has in with_gpu or alive)
    return sum(map(int, at_once)), 1 if with_gpu else 0


def _job_line(task: Task, jobs: int) -> str:
    """The job, with paths that hold wherever its worker works."""
    before = None if task.before is None else _rooted(task.before)
    return to_json_line(_rooted(task.run), task.folder.resolve(), jobs, before)


def _rooted(run: Run) -> Run:
    root = run.data.root
    return dataclasses.replace(run, data=dataclasses.replace(run.data, root=None if root is None else _absolute(root)))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _collect(ray: Any, refs: dict[Any, Task], waiting: list[Task]) -> Generator[Step]:
    while waiting:  # Ray drops tasks whose references are gone
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=1.0)
        yield None
        for ref in ready:
            task = refs.pop(ref)
            waiting.remove(task)
            try:
                manifest = ray.get(ref)
            except ray.exceptions.RayError as error:
                yield task, str(error).strip().splitlines()[-1]
            else:
                yield task, Manifest(manifest.file, RunFolder(task.folder).manifest)


def _in_worker(work: Work, line: str, log: str) -> Manifest:
    """In a worker: do the job, and give its manifest. What training prints goes to the run's log."""
    run, folder, jobs, first = from_json_line(line)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    before = sys.stderr
    with open(log, "a") as sys.stderr:
        try:
            return work(run, folder, jobs, first)
        except (OfframpError, UsageError) as error:
            say(f"offramp: {error}")
            raise
        finally:
            sys.stderr = before


def installed() -> Any:
    """Ray itself; refused where it is not installed."""
    with needs("Ray", "ray"):
        import ray
    return ray
