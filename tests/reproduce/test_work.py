"""Real runs, as small as they come."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offramp.config import Spec
from offramp.errors import OfframpError
from offramp.reproduce import experiments
from offramp.reproduce.identity import run_hash, run_name
from offramp.reproduce.jobs import Task, do_here
from offramp.reproduce.manifest import find
from offramp.reproduce.results import of_manifest
from offramp.reproduce.study import Study
from offramp.reproduce.work import from_words, to_words, work
from offramp.runs import RunFolder


@pytest.fixture
def rows(tiny):
    """`rows("table1")`: the rows of an experiment at the tiny scale, by label."""

    def of(name):
        (experiment,) = experiments([name], tiny)
        return {row.label: row for row in experiment.rows}

    return of


def test_a_manifest_says_what_the_run_gave(rows, tmp_path: Path) -> None:
    run = rows("table5")["+ Power-sqrt"].with_seed(2)
    made = work(run, tmp_path / "run", jobs=3)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    figures = of_manifest(made)
    assert figures.top1 == tuple(exit["top1"] for exit in evaluation["exits"])
    assert figures.damping_train == tuple(exit["train"]["damping"] for exit in evaluation["exits"])
    assert figures.budgeted is None  # nothing was held out
    timing = json.loads((tmp_path / "run" / "timing.jsonl").read_text())
    assert made.seconds == pytest.approx(timing["seconds"], abs=0.01)
    values = made.values
    assert values["timing"]["jobs"] == 3
    assert values["images"]["train"] == RunFolder(tmp_path / "run").read_config()["images"]["train"]
    assert values["hash"] == run_hash(run)
    assert len((tmp_path / "run" / "manifest.json").read_bytes()) < 8000  # small enough to be committed
    assert find([tmp_path])[run_hash(run)].values == json.loads(json.dumps(values))


def test_budgeted_figures_where_images_are_held_out(rows, tmp_path: Path) -> None:
    made = work(rows("figure4")["cross-entropy"].with_seed(0), tmp_path / "run")
    assert len(made.values["budgeted"]) == 39
    assert of_manifest(made).budgeted is not None


def test_watching_the_test_set_changes_nothing_that_is_trained(rows, tmp_path: Path) -> None:
    watched = rows("table3")["MSDNet last only (best epoch)"].with_seed(0)
    made = work(watched, tmp_path / "watched")
    plain = dataclasses.replace(
        watched, data=dataclasses.replace(watched.data, source=Spec("digits", {"limit": 200}), holdout=0)
    )
    other = work(plain, tmp_path / "plain")
    assert made.values["weights"] == other.values["weights"]
    assert made.values["best_epoch"]["top1"] == pytest.approx(
        made.values["exits"][0]["top1"] and [made.values["exits"][0]["top1"]]
    )
    assert other.values["best_epoch"] is None


def test_a_job_travels_as_a_line(rows) -> None:
    row = rows("table1")["+ Dynamic"]
    run = dataclasses.replace(row.with_seed(3), data=dataclasses.replace(row.run.data, root="r", workers=2))
    line = to_words(run, Path("somewhere/here"), 2)
    assert "\n" not in line
    assert from_words(line) == (run, Path("somewhere/here"), 2)


def test_processes_side_by_side(rows, tmp_path: Path, capsys) -> None:
    """One run and one that fails: the other is done, and the error says where to look."""
    good = rows("table1")["MSDNet"].with_seed(1)
    bad = dataclasses.replace(good, rule=Spec("dfs", {"ratio": 7}))
    tasks = [Task(run, tmp_path / run_name(run), 1.0) for run in (bad, good)]
    done = []
    with pytest.raises(OfframpError, match=r"1 of the runs failed; the others are kept.*dfs-seed1-.*\.log"):
        do_here(
            tasks, jobs=2, threads=1, finished=lambda task, manifest: done.append((task.run, manifest.values["timing"]))
        )
    assert [(run, timing["jobs"]) for run, timing in done] == [(good, 2)]
    assert "offramp: " in (tmp_path / f"{tasks[0].name}.log").read_text()
    assert "Done: " in capsys.readouterr().err


def test_what_is_done_is_not_done_again(rows, tiny, tmp_path: Path) -> None:
    study = Study(names=("table1",), scale=tiny, seeds=(0,), out=tmp_path, only=("MSDNet", "Damping"))
    first, second = study.tasks(study.manifests())
    study.do([first], lambda tasks, finished: [finished(task, work(task.run, task.folder)) for task in tasks])
    assert [task.name for task in study.tasks(study.manifests())] == [second.name]


def test_an_orphan_saves_and_leaves(rows, tmp_path: Path) -> None:
    """A job whose starter is gone stops as by SIGTERM: status 143 once training has begun, and a checkpoint."""
    row = rows("table1")["MSDNet"]
    run = dataclasses.replace(row.run, training=dataclasses.replace(row.run.training, epochs=100_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "offramp.reproduce.work"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        process.stdin.write(f"{to_words(run, tmp_path / 'run', 1)}\n".encode())
        process.stdin.flush()
        metrics = RunFolder(tmp_path / "run").metrics
        while not metrics.is_file():
            assert process.poll() is None
            time.sleep(0.05)
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert b"The same command continues" in said
    assert os.listdir(tmp_path / "run" / "checkpoints")
