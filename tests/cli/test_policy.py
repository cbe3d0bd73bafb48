import json

import pytest

from offramp.cli import main
from offramp.costs import cost
from offramp.evaluation import Record, policy_for
from offramp.policy import Policy
from offramp.storage import weights_hash

TIMES = [0.5, 1.4, 1.6]
NO_PROMISE = "where the thresholds were found: a description, no promise"


@pytest.fixture
def measured(make_run, tiny):
    """A run whose times were measured."""
    run = make_run()
    bench = {
        "weights": weights_hash(tiny.state_dict()),
        "device": "cpu: made up",
        "exit_ms": {"1": TIMES, "32": [1, 2, 3]},
    }
    with open(f"{run}/bench.json", "w") as file:
        json.dump(bench, file)
    return run


def kept(run) -> Record:
    return Record.load(f"{run}/records/search.safetensors")


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["--budget", "0.5"], {"budget": 0.5}),
        (["--max-drop", "5"], {"max_drop": 5}),
        (["--latency", "1.2"], {"latency": 1.2, "times": TIMES}),
        (["--latency", "2.5", "--batch", "32"], {"latency": 2.5, "times": [1, 2, 3]}),
        (["--max-drop", "5", "--batch", "32"], {"max_drop": 5, "times": [1, 2, 3]}),
    ],
    ids=" ".join,
)
def test_a_run_gets_a_policy_for_a_target(measured, tiny, arguments, target, capsys):
    assert main(["policy", measured, *arguments]) == 0
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    policy = Policy.load(f"{measured}/policy.json")
    expected = policy_for(kept(measured), cost(tiny), **target)
    assert policy.thresholds == expected.thresholds
    assert expected.found.items() <= policy.found.items()
    assert NO_PROMISE in out
    assert "On the search images (150 of " in out
    assert f"Operations per image: {policy.found['operations']:,.0f}, " in out
    assert ("Milliseconds per image" in out) == ("times" in target)
    assert out.endswith("policy.json")
    assert captured.err == ""


def test_json_is_one_object_and_agrees_with_the_file(measured, tmp_path, capsys):
    file = tmp_path / "mine.json"
    assert main(["policy", measured, "--budget", "0.5", "--json", "--out", str(file)]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.err.splitlines() == [values["written"]] == [str(file)]
    policy = Policy.load(file)
    assert values["policy"]["thresholds"] == list(policy.thresholds)
    assert values["certificate"] is None
    assert sum(exit["images"] for exit in values["exits"]) == values["images"] == 150
    assert values["operations"] == pytest.approx(policy.found["operations"])
    assert values["operations"] <= 0.5 * values["full_operations"]
    top1 = sum(exit["share"] * exit["top1"] for exit in values["exits"] if exit["top1"] is not None)
    assert top1 == pytest.approx(values["top1"]) == pytest.approx(policy.found["accuracy"])


def test_where_few_images_show_no_small_drop_that_is_said(measured, capsys):
    assert main(["policy", measured, "--max-drop", "0.1"]) == 0
    said = capsys.readouterr().err
    assert "No image leaves early" in said
    assert "the 150 images of arrays/search" in said
    assert len(said.splitlines()) == 1
    assert main(["policy", measured, "--max-drop", "50"]) == 0
    assert "No image leaves early" not in capsys.readouterr().err


def test_a_certificate_that_is_lost_is_told_on_standard_error(measured, capsys):
    assert main(["certify", measured, "--risk", "0.1", "--confidence", "0.9"]) == 0
    capsys.readouterr()
    assert main(["policy", measured, "--budget", "0.5", "--json"]) == 0
    captured = capsys.readouterr()
    assert f"The policy in {measured}/policy.json had a certificate" in captured.err
    assert json.loads(captured.out)["replaced"] is True
    assert main(["policy", measured, "--budget", "0.5"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({}, [], "Give one target"),
        ({}, ["--budget", "0.5", "--max-drop", "1"], "Give one target"),
        ({}, ["--budget", "0.001"], "cannot be kept"),
        ({}, ["--max-drop", "nan"], "max_drop must be a number of at least 0"),
        ({}, ["--latency", "1"], "run` measures it"),
        ({}, ["--budget", "0.5", "--batch", "32"], "whatever the batch"),
        ({}, ["--budget", "0.5", "--measure", "patience", "--temperature"], "patience looks only at answers"),
        ({"holdout": 0}, ["--budget", "0.5"], "with holdout=0 every training image was trained on"),
        ({"images": {"train": "another"}}, ["--budget", "0.5"], "training images found now are not those"),
        ({"images": {"search": "another"}}, ["--budget", "0.5"], "held out now are not those"),
        ({"data": None}, ["--budget", "0.5"], "offramp.commands.find_policy(PolicyOptions("),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, arguments, says, make_run, tmp_path, capsys):
    assert main(["policy", make_run(**settings), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run" / "policy.json").exists()
