"""The same jobs on a Ray cluster: the one that is running, or one of this machine alone. Ray is an extra.

The study's folder has to be seen by all machines under the same path, or a run that loses its worker starts anew and
does not go on. Manifests come back by themselves.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.errors import OfframpError, UsageError
from offramp.reproduce.jobs import Board, Finished, Task, hopeless, log_of, refuse_failed
from offramp.reproduce.manifest import Manifest
from offramp.reproduce.work import from_words, to_words, work

RETRIES = 20  # of a run whose worker is lost; each goes on where the last checkpoint stands


def do_on_ray(tasks: Sequence[Task], threads: int, finished: Finished) -> None:
    """Do all tasks on a Ray cluster, each with `threads` CPUs, and one GPU where the cluster has any.

    Args:
        tasks: In the order in which they are handed over.
        threads: CPU threads of each.
        finished: Called with each task that is done and its manifest.

    Raises:
        UsageError: Ray is not installed.
        OfframpError: Which runs failed.
    """
    ray = _ray()
    started_here = not ray.is_initialized()
    if started_here:
        # A worker works elsewhere; `mine:Loss` is found in the folder one works in, as by the command itself.
        path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        has = ray.cluster_resources()
        there = ray.remote(num_cpus=threads, num_gpus=1 if has.get("GPU") else 0, max_retries=RETRIES)(_there)
        jobs = min(len(tasks), max(1, int(has["CPU"] // threads)))  # at most so many side by side
        refs = {
            there.remote(to_words(task.run, task.folder.resolve(), jobs), str(log_of(task).resolve())): task
            for task in tasks
        }
        _collect(ray, refs, finished)
    finally:
        if started_here:
            ray.shutdown()


def _collect(ray: Any, refs: dict[Any, Task], finished: Finished) -> None:
    waiting, failed, done = dict(refs), list[Task](), 0
    untried = 0
    with Board(list(refs.values())) as board:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for ref in ready:
                task = waiting.pop(ref)
                try:
                    values = ray.get(ref)
                except ray.exceptions.RayError as error:
                    failed.append(task)
                    board.note(f"Failed: {task.name}: {str(error).strip().splitlines()[-1]}")
                else:
                    done += 1
                    finished(task, Manifest(values, task.folder / "manifest.json"))
                    board.note(f"Done: {task.name}")
            if hopeless(failed, done):
                untried += len(waiting)
                waiting.clear()  # Ray drops what is nobody's any more
            board.show()
    refuse_failed(failed, untried)


def _there(line: str, log: str) -> Mapping[str, Any]:
    """In a worker: do the job, and give its manifest. What training says goes to the run's log."""
    run, folder, jobs = from_words(line)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    before = sys.stderr
    with open(log, "a") as sys.stderr:
        try:
            return dict(work(run, folder, jobs).values)
        except (OfframpError, UsageError) as error:
            print(f"offramp: {error}", file=sys.stderr)
            raise
        finally:
            sys.stderr = before


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed: pip install 'offramp[ray]'.") from error
    return ray
