"""Real runs, as small as they come."""

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from offramp.commands.job import main, work
from offramp.files import RunFolder
from offramp.paper.identity import run_hash, run_name
from offramp.paper.jobs import from_json_line, to_json_line
from offramp.paper.results import of_manifest
from offramp.storage import load_tensors


def test_budgeted_figures_where_images_are_held_out(rows, tmp_path: Path) -> None:
    made = work(rows("figure4")["cross-entropy"].with_seed(0), tmp_path / "run")
    assert len(made.file.budgeted) == 39
    assert of_manifest(made).values("budgeted") is not None


def test_a_job_travels_as_a_line(rows) -> None:
    row = rows("table1")["+ Dynamic"]
    run = dataclasses.replace(row.with_seed(3), data=dataclasses.replace(row.run.data, root="r", workers=2))
    line = to_json_line(run, Path("somewhere/here"), 2)
    assert "\n" not in line
    assert from_json_line(line) == (run, Path("somewhere/here"), 2, None)
    imta = rows("league")["IMTA"]
    line = to_json_line(imta.run, Path("here"), 1, imta.before)
    assert from_json_line(line) == (imta.run, Path("here"), 1, imta.before)


def test_an_orphan_saves_and_leaves(rows, tmp_path: Path, capsys) -> None:
    """A job whose starter is gone stops as by SIGTERM: status 143 once training has begun, and a checkpoint."""
    row = rows("table1")["MSDNet"]
    long = dataclasses.replace(row.run.training, epochs=100_000, form="plain")  # or so long a run would be compiled
    run = dataclasses.replace(row.run, training=long)
    own, (reads, writes), metrics = os.dup(0), os.pipe(), RunFolder(tmp_path / "run").metrics

    def starter() -> None:
        os.write(writes, f"{to_json_line(run, tmp_path / 'run', 1)}\n".encode())
        while not metrics.is_file():
            time.sleep(0.02)
        os.close(writes)  # as its end would

    os.dup2(reads, 0)
    threading.Thread(target=starter, daemon=True).start()
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        os.dup2(own, 0)
        os.close(own)
        os.close(reads)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "The same command continues" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("table2", "WPN, its own recipe"),  # whose batches are larger than the data here
        ("table2", "+ Dynamic, over the batch (mat)"),
        ("table1", "Damping, λ rising with depth"),
        ("league", "CGT, soft gate, its own recipe"),
    ],
)
def test_rows_beside_the_papers_train(rows, tmp_path: Path, name: str, label: str) -> None:
    row = rows(name)[label]
    assert len(of_manifest(work(row.run, tmp_path / "run")).top1) == row.num_exits == 3


def test_a_second_stage_begins_with_the_run_beside_it(rows, tmp_path: Path) -> None:
    """IMTA's exits, taught by a run of gradient equilibrium of the same seed, which is done first where it is not."""
    row = rows("league")["IMTA"]
    run, first = row.with_seed(1), rows("league")["gradient equilibrium"].with_seed(1)
    beside = tmp_path / run_name(first)
    made = work(run, tmp_path / run_name(run), first=row.before_with_seed(1))
    assert made.file.hash == run_hash(run)
    made.check(run, 3)
    before = RunFolder(beside).manifest.stat().st_mtime_ns
    taught, teacher = (load_tensors(path / "weights.safetensors")[0] for path in (tmp_path / run_name(run), beside))
    kernels = [value for value in teacher.values() if value.dim() == 4]
    assert all(any(value.equal(its) for its in taught.values()) for value in kernels)  # frozen: only exits were trained
    other = dataclasses.replace(run.training, epochs=2)
    work(dataclasses.replace(run, training=other), tmp_path / "other", first=first)
    assert RunFolder(beside).manifest.stat().st_mtime_ns == before  # once


@pytest.mark.slow
@pytest.mark.parametrize("name", ["league", "league-imagenet"])
def test_every_method_trains(rows, tmp_path: Path, name: str) -> None:
    for number, row in enumerate(rows(name).values()):
        made = work(row.run, tmp_path / str(number), first=row.before)
        assert len(of_manifest(made).top1) == 3
        assert (of_manifest(made).values("budgeted") is not None) == (name == "league-imagenet")
