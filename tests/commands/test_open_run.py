"""What all commands on a run share: runs they refuse, in one line, and one JSON object that is their file."""

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.cli import main
from offramp.commands import EvaluateOptions
from offramp.commands.open_run import OpenRun
from offramp.errors import UsageError

COMMANDS = {
    "evaluate": ["evaluate", "RUN", "--train-limit", "20"],
    "policy": ["policy", "RUN", "--budget", "0.7"],
    "certify": ["certify", "RUN", "--risk", "0.1", "--confidence", "0.9"],
    "bench": [*"bench RUN --batches 8 --limit 16 --rounds 5 --seconds 1 --backend torch".split()],
    "verdict": [*"verdict RUN --no-train --images 10 --rounds 5 --seconds 0.2 --batch-size 2 --backend torch".split()],
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other training images": ({"images": {"train": "another"}}, "training images found now are not those"),
    "other held-out images": ({"images": {"search": "another"}}, "held out now are not those"),
    "nothing held out": ({"holdout": 0}, "hold"),
    "data by hand": ({"data": None}, "offramp.commands"),
    "network by hand": ({"network": None}, "built by hand"),
}
EVALUATED = {"other held-out images", "nothing held out"}  # evaluate says what it leaves out


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_of_which_nothing_can_be_said_is_refused_in_one_line(command, reason, make_trained, tmp_path, capsys):
    if command == "evaluate" and reason in EVALUATED:
        return
    settings, says = REFUSED[reason]
    run = make_trained(**settings)
    before = sorted(tmp_path.rglob("*"))
    assert main([run if word == "RUN" else word for word in COMMANDS[command]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("without_matplotlib")
@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_object_on_standard_output_and_files_are_named_elsewhere(command, make_trained, capsys):
    run = make_trained()
    assert main([*(run if word == "RUN" else word for word in COMMANDS[command]), "--json"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    values = json.loads(line)
    name = {"evaluate": "evaluation", "certify": "policy"}.get(command, command)
    assert f"{run}/{name}.json" in captured.err
    written = json.loads(Path(run, f"{name}.json").read_text())
    if name == "policy":
        assert values["policy"]["thresholds"] == written["thresholds"]
        assert sum(exit["share"] for exit in values["exits"]) == pytest.approx(1)
    else:
        assert values == written


@pytest.mark.parametrize("where", ["config.json", "split.json"])
def test_what_is_refused_of_thresholds_is_what_evaluate_says_of_them(where, make_trained, parts, tiny) -> None:
    """`evaluate` looked at config.json alone, and drew thresholds of images that `certify` refused."""
    other = {"config.json": {"images": {"search": "0" * 64}}, "split.json": {"fingerprints": {"search": "0" * 64}}}
    run = Path(make_trained())
    values = json.loads((run / "config.json").read_text()) if where == "config.json" else {}
    (run / where).write_text(json.dumps({**values, **other[where]}))
    one = OpenRun(EvaluateOptions(str(run)), parts, tiny)
    with pytest.raises(UsageError, match="not those that were held out") as caught:
        one.held_out("search", progress=None)
    assert one.no_thresholds() == str(caught.value)


def test_a_batch_of_no_images_is_refused_before_anything_is_recorded(make_trained, parts, tiny) -> None:
    run = Path(make_trained())
    one = OpenRun(EvaluateOptions(str(run), batch_size=0), parts, tiny)
    with pytest.raises(UsageError, match="batch_size must be"):
        one.record(parts.test, "test", None)
    assert not one.folder.records.exists()
