"""Real runs, as small as they come."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offramp.commands.job import work
from offramp.files import RunFolder
from offramp.paper.jobs import from_json_line, to_json_line
from offramp.paper.results import of_manifest


def test_budgeted_figures_where_images_are_held_out(rows, tmp_path: Path) -> None:
    made = work(rows("figure4")["cross-entropy"].with_seed(0), tmp_path / "run")
    assert len(made.values["budgeted"]) == 39
    assert of_manifest(made).budgeted is not None


def test_a_job_travels_as_a_line(rows) -> None:
    row = rows("table1")["+ Dynamic"]
    run = dataclasses.replace(row.with_seed(3), data=dataclasses.replace(row.run.data, root="r", workers=2))
    line = to_json_line(run, Path("somewhere/here"), 2)
    assert "\n" not in line
    assert from_json_line(line) == (run, Path("somewhere/here"), 2)


def test_an_orphan_saves_and_leaves(rows, tmp_path: Path) -> None:
    """A job whose starter is gone stops as by SIGTERM: status 143 once training has begun, and a checkpoint."""
    row = rows("table1")["MSDNet"]
    run = dataclasses.replace(row.run, training=dataclasses.replace(row.run.training, epochs=100_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "offramp.commands.job"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        process.stdin.write(f"{to_json_line(run, tmp_path / 'run', 1)}\n".encode())
        process.stdin.flush()
        metrics = RunFolder(tmp_path / "run").metrics
        while not metrics.is_file():
            assert process.poll() is None
            time.sleep(0.05)
        _, said = process.communicate(timeout=60)  # closes its standard input, as the end of the starter would
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert b"The same command continues" in said
    assert os.listdir(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["league", "figure4"])
def test_every_method_trains(rows, tmp_path: Path, name: str) -> None:
    for number, row in enumerate(rows(name).values()):
        made = work(row.run, tmp_path / str(number))
        assert len(of_manifest(made).top1) == 3
        assert (of_manifest(made).budgeted is not None) == (name == "figure4")
