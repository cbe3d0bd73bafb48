import json
from pathlib import Path

import pytest

from offramp.cli import main

QUICK = ["--no-train", "--images", "10", "--rounds", "5", "--seconds", "0.2", "--batch-size", "2", "--backend", "torch"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("offramp.runtime.tune.STREAMED", (32, 32))


def test_a_run_is_judged_and_the_table_says_what_the_file_says(make_run, capsys):
    run = make_run()
    assert main(["verdict", run, *QUICK]) == 0
    captured = capsys.readouterr()
    values = json.loads(Path(run, "verdict.json").read_text())
    out = " ".join(captured.out.split())
    assert values["headline"] in out
    for words in (
        "the network cut at exit 2",
        "the network straight to its last exit",
        "2 images at a time",
        "Missing: ",
    ):
        assert words in out
    assert values["answer"] != "yes"  # nothing was trained to compare with
    assert values["missing"] == [1, 2, 3]
    assert captured.out.splitlines()[-2:] == [f"{run}/verdict.json", f"{run}/verdict.html"]
    assert captured.err.splitlines()[0].startswith("Tuning the engine on images of ")


def test_json_is_one_object_and_agrees_with_the_file(make_run, capsys, without_matplotlib, monkeypatch):
    monkeypatch.setattr("offramp.show.figures.available", lambda: False)
    run = make_run()
    assert main(["verdict", run, *QUICK, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(Path(run, "verdict.json").read_text())
    assert not Path(run, "verdict.html").exists()
    assert captured.err.splitlines()[-1].startswith("No verdict.html: plots need matplotlib")


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({}, ["--rounds", "2"], "rounds must be at least 5"),
        ({}, ["--exits", "4"], "exits are numbered from 1 to 3; there is no 4"),
        ({}, ["--policy", "nowhere.json"], "There is no file nowhere.json"),
        ({"holdout": 0}, [], "held none out"),
        ({"images": {"train": "another"}}, [], "training images found now are not those"),
        ({"data": None}, [], "offramp.commands.verdict"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, arguments, says, make_run, capsys):
    assert main(["verdict", make_run(**settings), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
