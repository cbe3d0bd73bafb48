"""What a finished run leaves, and how it is found again."""

import dataclasses
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import spearmanr

from offramp.commands.job import work
from offramp.config import Run
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.json_files import write
from offramp.paper.identity import run_hash
from offramp.paper.manifest import damping_order, find
from offramp.paper.results import of_manifest
from offramp.training import train


def test_a_manifest_says_what_the_run_gave(rows, tmp_path: Path) -> None:
    run = rows("table5")["+ Power-sqrt"].with_seed(2)
    made = work(run, tmp_path / "run", jobs=3)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    figures = of_manifest(made)
    assert figures.top1 == tuple(exit["top1"] for exit in evaluation["exits"])
    assert figures.values("damping-train") == tuple(exit["train"]["damping"] for exit in evaluation["exits"])
    assert figures.values("budgeted") is None  # nothing was held out
    timing = json.loads((tmp_path / "run" / "timing.jsonl").read_text())
    assert made.file.timing.seconds == pytest.approx(timing["seconds"], abs=0.01)
    file = made.file
    stats = RunFolder(tmp_path / "run").read_metrics()[-1].stats
    assert file.last_stats == {"gamma": stats["gamma"], "weight": stats["weight"]}
    assert (figures.values("gamma"), figures.values("weight")) == (tuple(stats["gamma"]), (1.0, 1.0, 1.0))
    assert file.timing.jobs == 3
    assert file.load.own == 3 * file.made_by.threads
    assert file.load.start >= 0
    assert file.test_images == figures.images == 355
    assert file.images.train == RunFolder(tmp_path / "run").read_config().images["train"]
    assert file.hash == run_hash(run)
    assert file.starts == ()  # it was never continued elsewhere
    assert len((tmp_path / "run" / "manifest.json").read_bytes()) < 8000  # small enough to be committed
    assert find([tmp_path])[run_hash(run)] == made


def test_time_is_that_of_a_run_that_was_never_interrupted(rows, tmp_path: Path) -> None:
    """A killed epoch leaves no line and its rest a short one; what counts is the time of an image."""
    run = rows("table1")["MSDNet"].run
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, epochs=2))
    folder = RunFolder(tmp_path / "run")
    train(run, folder.path)
    lines = [{"epoch": 1, "images": 200, "seconds": 4.0}, {"epoch": 2, "images": 72, "seconds": 1.44}]
    folder.timing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = work(run, folder.path)
    assert made.undisturbed is None  # it was trained before, and nobody looked
    assert made.file.timing.seconds == pytest.approx(400 * 5.44 / 272)
    assert made.file.last_stats == {}  # cross-entropy says neither a coefficient nor a weight
    folder.timing.write_text(json.dumps(lines[1]) + "\n")  # both epochs killed: four batches of 64 say how long one is
    assert work(run, folder.path).file.timing.seconds == pytest.approx(2 * 193 * 1.44 / 72)


def test_where_a_run_was_continued_is_kept(rows, tmp_path: Path) -> None:
    run = rows("table1")["MSDNet"].run
    folder = RunFolder(tmp_path / "run")
    train(run, folder.path)
    (start,) = json.loads(folder.environment.read_text())
    other = {**start, "device": "gpu", "threads": 9}
    for starts, kept in (
        ([start, start], None),
        ([other, other, start], ["gpu", "cpu"]),
        ([start, other, start], ["cpu", "gpu", "cpu"]),
        ([{**start, "torch": "1.0"}, start], ["cpu", "cpu"]),
        ([{**start, "processor": "Z80"}, start], ["cpu", "cpu"]),
        ([{**start, "form": "compiled"}, start], ["cpu", "cpu"]),
    ):
        folder.environment.write_text(json.dumps(starts))
        made = work(run, folder.path)
        assert made.file.made_by.device == start["device"]
        assert ([start.device for start in made.file.starts] or None) == kept
        elsewhere = any(one[key] != start[key] for one in starts for key in ("device", "processor", "form"))
        clock = of_manifest(made).clock
        assert (clock.device, clock.moved) == (start["processor"], elsewhere)


def test_more_load_than_the_runs_themselves_is_other_work(manifest) -> None:
    """One thread, one run: up to 1.5 is nothing else. Manifests that were made before it was kept say nothing."""
    for load, alone in ((0.9, True), (1.5, True), (1.6, False), (None, None)):
        made = manifest(Run(), [70.0], load=load)
        assert made.undisturbed is of_manifest(made).clock.alone is alone
    first, second = (of_manifest(manifest(Run(), [70.0], load=load)) for load in (1.0, 1.4))
    assert first.timed_like(second)
    for load, words in ((2.0, "other work beside"), (None, "other work not recorded")):
        other = of_manifest(manifest(Run(), [70.0], load=load))
        assert not first.timed_like(other)
        assert not other.timed_like(other)
        assert str(other.clock) == f"cpu, 1 thread, one run at a time by this command, {words}"


def test_what_is_found(tmp_path: Path, manifest) -> None:
    one = manifest(Run(), [70.0])
    one.save(tmp_path / "deep" / "down" / "a.json")
    manifest(Run(), [99.0]).save(tmp_path / "other" / "a.json")
    (tmp_path / "other" / "no.json").write_text('{"hash": "x"}')
    found = find([tmp_path / "deep", tmp_path / "other"])
    assert found[run_hash(Run())].file.mean_top1 == 70.0  # the first folder's
    assert find([tmp_path / "nowhere"]) == {}
    newer = manifest(Run(), [70.0])
    write(tmp_path / "newer" / "a.json", dataclasses.replace(newer.file, format=2))
    with pytest.raises(UsageError, match="newer offramp"):
        find([tmp_path / "newer"])


def test_manifests_without_or_with_half_of_what_training_said(tmp_path: Path, manifest) -> None:
    """Those that were made before it was kept have none; WPN weighs and does not damp."""
    old = manifest(Run(), [70.0, 71.0])
    old.save(tmp_path / "old" / "a.json")
    (read,) = find([tmp_path / "old"]).values()
    assert (of_manifest(read).values("gamma"), of_manifest(read).values("weight")) == (None, None)
    new = manifest(Run(), [70.0, 71.0], last_stats={"gamma": None, "weight": [0.9, 1.1]})
    new.save(tmp_path / "new" / "a.json")
    (read,) = find([tmp_path / "new"]).values()
    assert (of_manifest(read).values("gamma"), of_manifest(read).values("weight")) == (None, (0.9, 1.1))


def test_what_is_no_json_is_passed_over_with_a_note(tmp_path: Path, manifest, capsys) -> None:
    """A folder of somebody else's may hold anything."""
    manifest(Run(), [70.0]).save(tmp_path / "z.json")
    (tmp_path / "a.json").write_text('{"format": 1, "hash": ')
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    (tmp_path / "c.json").mkdir()
    assert set(find([tmp_path])) == set(find([tmp_path])) == {run_hash(Run())}
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 3  # once each
    for name, note in zip("abc", notes, strict=True):
        assert note.startswith("offramp: Passed over, as no manifest: ")
        assert f"{tmp_path / name}.json" in note


def test_a_run_that_diverged_has_a_manifest(tmp_path: Path, manifest) -> None:
    """Its loss may be no number; its accuracy is one."""
    manifest(Run(), [10.0], nll=math.nan).save(tmp_path / "a.json")
    (read,) = find([tmp_path]).values()
    assert math.isnan(of_manifest(read).values("train-nll")[0])


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (("timing",), None, "timing: expected object, got null"),
        (("timing", "seconds"), "long", "timing.seconds: expected float, got str"),
        (("exits", 0, "top1"), ..., "exits[0]: object missing required field top1"),
        (("exits", 0, "top1"), math.nan, "exits[0].top1: expected float >= 0.0"),
        (("exits", 0, "top1"), 100.5, "exits[0].top1: expected float <= 100.0"),
        (("best_epoch",), {"epoch": 1, "top1": [math.nan]}, "best_epoch.top1[0]: expected float >= 0.0"),
        (("exits", 0, "train"), {}, "exits[0].train: object missing required field top1"),
        (("run", "training"), {}, "its run has no seed"),
        (("made_by", "git"), "x", "made_by.git: expected object | null, got str"),
        (("starts",), [{}], "starts[0]: object missing required field device"),
        (("load",), {"start": 1.0}, "load: object missing required field end"),
        (("last_stats",), {"gamma": None, "weight": "x"}, "last_stats[...]: expected array | null, got str"),
        (("certified",), {"drop": 0.2}, "certified: object missing required field confidence"),
        (("format",), "1", "format: expected int, got str"),
    ],
)
def test_a_damaged_manifest_is_an_error(tmp_path: Path, manifest, where, value, fault) -> None:
    made = manifest(Run(), [70.0])
    at = values = msgspec.to_builtins(made.file)
    for key in where[:-1]:
        at = at[key]
    if value is ...:
        del at[where[-1]]
    else:
        at[where[-1]] = value
    write(tmp_path / "a.json", values)
    with pytest.raises(OfframpError) as error:
        find([tmp_path])
    assert str(error.value) == f"The manifest {tmp_path / 'a.json'} is damaged: {fault}. Restore it, or move it away."


def test_the_order_of_damping_is_that_within_an_image() -> None:
    """Exits that do better are damped more on each image here, although the mean coefficient falls with depth."""
    true_KS = np.array([[0.9, 0.2, 0.3], [0.5, 0.3, 0.8]], np.float32)
    gamma_KS = np.array([[0.9, 0.02, 0.03], [0.1, 0.03, 0.04]], np.float32)
    assert gamma_KS.mean(1)[0] > gamma_KS.mean(1)[1]
    order, excess = damping_order(gamma_KS, true_KS)
    assert order == 1
    assert excess == pytest.approx(100 * (0.8 + 0.2 + 1 / 7) / 3, rel=1e-5)
    assert damping_order(gamma_KS[::-1], true_KS)[0] == -1
    assert damping_order(np.full((2, 3), 0.1, np.float32), true_KS) is None
    rng = np.random.default_rng(0)
    many, others = rng.random((7, 500)), rng.random((7, 500))
    expected = np.mean([spearmanr(many[:, s], others[:, s]).statistic for s in range(500)])
    assert damping_order(many, others)[0] == pytest.approx(expected)
    assert abs(expected) < 0.1
