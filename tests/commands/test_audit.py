import json

import numpy as np
import pytest

from offramp.cli import main

SMALL = ["--trials", "200", "--images", "400", "--candidates", "21"]


def cautious(trials, promise):
    return np.zeros(len(trials.certify_TM), dtype=int)


def test_ours_passes_and_the_table_says_how_often_it_breaks(capsys):
    assert main(["audit", *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [line for line in captured.out.splitlines() if " ok " in line]
    assert len(rows) == 8
    assert "BROKEN" not in captured.out
    assert all("10.00%" in row for row in rows)


def test_the_largest_risk_that_is_said_can_be_audited():
    assert main(["audit", f"{__name__}:cautious", *SMALL, "--trials", "10", "--risk", "0.166"]) == 0


@pytest.mark.parametrize("procedure", ["first-uncertified", "quantile"])
def test_a_procedure_that_breaks_its_promise_fails(procedure, capsys):
    assert main(["audit", procedure, *SMALL]) == 1
    captured = capsys.readouterr()
    assert "BROKEN" in captured.out
    assert captured.err.startswith(f"offramp: {procedure} breaks its promise in ")


def test_json_is_one_object_with_every_setting(capsys):
    assert main(["audit", "certify", "--json", "--trials", "50", "--images", "60", "200", "--loss", "drop"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["procedure"], values["loss"], values["risk"], values["confidence"]) == ("certify", "drop", 0.05, 0.9)
    settings = {(f["population"], f["images"], f["candidates"]) for f in values["findings"]}
    assert len(settings) == len(values["findings"]) == 8 * 2 * 2
    assert values["passes"] is True
    assert all(f["rate"] == f["broken"] / 50 and f["limit"] <= f["rate"] for f in values["findings"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["certified"], "Did you mean certify"),
        (["--risk", "1"], "risk must lie between 0 and 1"),
        (
            ["--risk", "0.17"],
            "no population 'up and down' for so large a risk; all of them can be made for risks up to 0.166",
        ),
        (["--risk", "0.9"], "for so large a risk"),
        (["--seed", "-1"], "seed must be a whole number of at least 0, not -1"),
        (["--trials", "0"], "trials must be at least 1"),
    ],
)
def test_wrong_use_is_one_line(arguments, says, capsys):
    assert main(["audit", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
