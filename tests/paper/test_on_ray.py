"""The jobs on a real Ray of this machine, with two workers, one of which is killed."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from offramp.commands.job import work
from offramp.config import Spec
from offramp.errors import OfframpError, UsageError
from offramp.paper import experiments
from offramp.paper.identity import run_name
from offramp.paper.jobs import Task, from_json_line
from offramp.paper.on_ray import _environment, _job_line, _room, do_on_ray

FRAGILE = """
import os, signal
from pathlib import Path
from offramp.objectives import CrossEntropy

class Fragile(CrossEntropy):
    def terms(self, logits_KBC, targets_B, *, progress=0.0):
        if progress > 0.6 and not Path(MARK).exists():
            Path(MARK).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().terms(logits_KBC, targets_B, progress=progress)
"""


def tasks_of(tiny, folder: Path) -> list[Task]:
    """Two runs of five epochs; the first kills its own process on the way, once."""
    (experiment,) = experiments(["table1"], tiny)
    run = experiment.row("MSDNet").run
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, epochs=5))
    other = dataclasses.replace(run, training=dataclasses.replace(run.training, seed=1))
    fragile = dataclasses.replace(run, objective=Spec("fragile:Fragile"))
    return [Task(one, folder / run_name(one), 1.0) for one in (fragile, other)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_killed_worker_goes_on(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run ends with the weights of one that was left in peace."""
    ray = pytest.importorskip("ray")
    (tmp_path / "fragile.py").write_text(FRAGILE.replace("MARK", repr(str(tmp_path / "killed"))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tasks, done = tasks_of(tiny, tmp_path / "runs"), {}
    monkeypatch.setattr(ray, "init", _with_two_workers(ray.init))
    do_on_ray(tasks, 1, lambda task, manifest: done.update({task.name: manifest}), work)
    assert (tmp_path / "killed").exists()
    assert "Continuing after 3 epochs" in (tmp_path / "runs" / f"{tasks[0].name}.log").read_text()
    for task in tasks:
        alone = work(task.run, tmp_path / "alone" / task.name)
        assert done[task.name].file.weights == alone.file.weights
        assert done[task.name].file.timing.jobs == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_fails_is_told(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", _with_two_workers(ray.init))
    _, good = tasks_of(tiny, tmp_path / "runs")
    bad = Task(dataclasses.replace(good.run, rule=Spec("dfs", {"ratio": 7})), tmp_path / "runs" / "bad", 1.0)
    done = []
    with pytest.raises(OfframpError, match=r"1 of the runs failed.*dfs-seed1.*\.log"):
        do_on_ray([bad, good], 1, lambda task, manifest: done.append(task), work)
    assert done == [good]


def test_workers_find_the_same_data(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They work in other folders: what is relative here means something else there."""
    monkeypatch.chdir(tmp_path)
    task = tasks_of(tiny, Path("runs"))[0]
    placed = dataclasses.replace(task.run, data=dataclasses.replace(task.run.data, root="data"))
    run, folder, *_ = from_json_line(_job_line(dataclasses.replace(task, run=placed), 2))
    assert (run.data.root, folder) == (str(tmp_path / "data"), tmp_path / task.folder)
    assert run_name(run) == task.name
    assert from_json_line(_job_line(task, 2))[0].data.root is None
    first = from_json_line(_job_line(dataclasses.replace(task, before=placed), 2))[3]
    assert first.data.root == str(tmp_path / "data")
    told = _environment({"OFFRAMP_DATA": "files", "PYTHONPATH": os.pathsep.join(["src", "/lib", ""])})
    assert told["OFFRAMP_DATA"] == str(tmp_path / "files")
    assert told["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), str(tmp_path / "src"), "/lib"]
    assert "OFFRAMP_DATA" not in _environment({})


def test_runs_that_fit_no_machine_are_refused() -> None:
    """Ray would wait for a larger one."""

    def node(alive: bool = True, **has: float) -> dict:
        return {"Alive": alive, "Resources": has}

    nodes = [node(CPU=4.0), node(CPU=2.0), node(False, CPU=64.0), node(memory=1.0)]
    assert _room(nodes, 2) == (3, 0)
    with pytest.raises(UsageError, match=r"^threads is 5, but the largest machine of the Ray cluster has 4 CPUs: "):
        _room(nodes, 5)
    assert _room([*nodes, node(CPU=3.0, GPU=2.0)], 1) == (2, 1)
    with pytest.raises(UsageError, match=r"the Ray cluster with a GPU has 3 CPUs"):
        _room([*nodes, node(CPU=3.0, GPU=2.0)], 4)
    with pytest.raises(UsageError, match="has 0 CPUs"):
        _room([], 1)


def test_without_ray(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'offramp\[ray\]'"):
        do_on_ray(tasks_of(tiny, tmp_path), 1, lambda task, manifest: None, work)


def _with_two_workers(init):
    return lambda **given: init(**given, num_cpus=2, include_dashboard=False)
