import json
from functools import partialmethod
from pathlib import Path

import pytest

from offramp.cli import main
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.runtime import Engine

QUICK = ["--batches", "1", "8", "--limit", "16", "--rounds", "5", "--seconds", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(Engine, "tune", partialmethod(Engine.tune, seconds=0.3))


def test_a_run_is_timed(make_run, capsys):
    run = make_run()
    assert main(["bench", run, *QUICK, "--max-drop", "5"]) == 0
    captured = capsys.readouterr()
    values = json.loads(Path(run, "bench.json").read_text())
    assert values["policy"]["found"]["max_drop"] == 5
    assert list(values["exit_ms"]) == ["1", "8", "stream"]
    assert captured.out.rstrip().endswith("bench.json")
    out = " ".join(captured.out.split())
    for words in ("3, straight", "engine", "batch 8:", "times as fast as straight", "1 thread,"):
        assert words in out
    assert captured.err.splitlines()[0].startswith("Tuning the engine on images of ")
    # What was measured is what policies for a latency are found with.
    half = (values["exit_ms"]["8"][0] + values["exit_ms"]["8"][-1]) / 2
    assert main(["policy", run, "--latency", str(half), "--batch", "8"]) == 0
    assert Policy.load(f"{run}/policy.json").found["times"] == values["exit_ms"]["8"]


def test_an_engine_that_answers_otherwise_is_an_error_after_the_file_is_written(make_run, monkeypatch, capsys):
    run, fed = make_run(), Engine.stream

    def wrong(engine, batches, **more):
        return (one._replace(labels_B=(one.labels_B + 1) % 3) for one in fed(engine, batches, **more))

    monkeypatch.setattr(Engine, "stream", wrong)
    assert main(["bench", run, *QUICK, "--max-drop", "5"]) == 1
    captured = capsys.readouterr()
    assert "The engine's answers are not all the policy's" in captured.err.splitlines()[-1]
    values = json.loads(Path(run, "bench.json").read_text())
    assert values["agreement"]["wrong"] > 0
    assert values["top1"] < values["exits"][-1]["top1"] - 20
    assert "by more than that" in " ".join(captured.out.split())


def test_json_is_one_object_and_agrees_with_the_file(make_run, tmp_path, capsys):
    file, policy = tmp_path / "mine.json", tmp_path / "policy.json"
    Policy((0.5, NOBODY, EVERYBODY)).save(policy)
    run = make_run()
    assert main(["bench", run, *QUICK, "--json", "--out", str(file), "--policy", str(policy)]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert values == json.loads(file.read_text())
    assert values["policy_file"] == str(policy)
    assert captured.err.splitlines()[-1] == str(file)


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({}, ["--rounds", "2"], "rounds must be at least 5"),
        ({}, ["--batches", "0"], "Each of batches must be at least 1"),
        ({}, ["--policy", "nowhere.json"], "There is no file nowhere.json"),
        ({"holdout": 0}, [], "give a policy, or train with a holdout"),
        ({"images": {"train": "another"}}, [], "training images found now are not those"),
        ({"images": {"search": "another"}}, [], "held out now are not those"),
        ({"data": None}, [], "offramp.commands.bench("),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, arguments, says, make_run, tmp_path, capsys):
    assert main(["bench", make_run(**settings), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run" / "bench.json").exists()
