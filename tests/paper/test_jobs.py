"""Processes side by side, and what is seen of them."""

import dataclasses
import sys
from pathlib import Path

import pytest

from offramp.config import Spec
from offramp.errors import OfframpError
from offramp.files import RunFolder
from offramp.paper.identity import run_name
from offramp.paper.jobs import Board, Task, do_here


@pytest.mark.slow  # quickly: test_where_a_run_was_done_before_all_are_tried, and the study of tests/cli
def test_processes_side_by_side(rows, tmp_path: Path, capsys) -> None:
    """One run and one that fails: the other is done, and the error says where to look."""
    good = rows("table1")["MSDNet"].with_seed(1)
    bad = dataclasses.replace(good, rule=Spec("dfs", {"ratio": 7}))
    tasks = [Task(run, tmp_path / run_name(run), 1.0) for run in (bad, good)]
    done = []
    with pytest.raises(OfframpError, match=r"1 of the runs failed; the others are kept.*dfs-seed1-.*\.log"):
        do_here(tasks, jobs=2, threads=1, finished=lambda task, manifest: done.append((task.run, manifest.file.timing)))
    assert [(run, timing.jobs) for run, timing in done] == [(good, 2)]
    assert "offramp: " in (tmp_path / f"{tasks[0].name}.log").read_text()
    assert "Done: " in capsys.readouterr().err


def test_where_all_fail_the_rest_is_not_tried(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data, say: three failures are enough to see it."""
    run = rows("table1")["MSDNet"]
    tasks = [Task(run.with_seed(seed), tmp_path / f"run{seed}", 1.0) for seed in range(9)]
    monkeypatch.setattr(sys, "executable", failing(tmp_path))
    with pytest.raises(OfframpError, match=r"3 of the runs failed, and 6 were not tried\."):
        do_here(tasks, jobs=1, threads=1, finished=lambda task, manifest: None)
    assert [task.failed_before for task in tasks] == [True] * 3 + [False] * 6


def test_where_a_run_was_done_before_all_are_tried(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package is missing, say: the runs that need it must not stand in the way of the others for good."""
    run = rows("table1")["MSDNet"]
    tasks = [Task(run.with_seed(seed), tmp_path / f"run{seed}", 1.0) for seed in range(5)]
    monkeypatch.setattr(sys, "executable", failing(tmp_path))
    with pytest.raises(OfframpError, match=r"5 of the runs failed; the others are kept\."):
        do_here(tasks, jobs=1, threads=1, finished=lambda task, manifest: None, before=1)


def failing(folder: Path) -> str:
    """A program in the place of Python that does nothing of what it is told."""
    program = folder / "python"
    program.write_text("#!/bin/sh\nread job\necho no data\nexit 1\n")
    program.chmod(0o755)
    return str(program)


def at_epoch(task: Task, epochs: int) -> None:
    """As if so many epochs of the task were done."""
    task.folder.mkdir(parents=True, exist_ok=True)
    RunFolder(task.folder).metrics.write_text("{}\n" * epochs)


def test_time_left_goes_by_the_work_done(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 units of work 1 was done before; an hour later 0.3 more are, so that 2.7 are left: 9 hours."""
    run = rows("table1")["MSDNet"].run
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, epochs=10))
    small, large = Task(run, tmp_path / "small", 1.0), Task(run, tmp_path / "large", 3.0)
    now = 1000.0
    monkeypatch.setattr("offramp.paper.jobs.time.monotonic", lambda: now)
    at_epoch(small, 10)
    board = Board([small, large])
    assert (board._left(), board._count()) == ("", "1 of 2 runs")
    now += 3600
    at_epoch(large, 1)
    assert large.share_done() == pytest.approx(0.1)
    assert board._left() == "; about 9.0 h left"
    at_epoch(large, 10)
    assert board._left() == ""


def test_a_long_run_is_heard_of_in_a_log_file(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = 1000.0
    monkeypatch.setattr("offramp.paper.jobs.time.monotonic", lambda: now)
    task = Task(rows("table1")["MSDNet"].run, tmp_path / "run", 1.0)
    with Board([task]) as board:
        now += 500
        board.show()
        assert capsys.readouterr().err == ""
        now += 500
        board.show()
        assert "0 of 1 runs" in capsys.readouterr().err
