import dataclasses
import io

import pytest
from rich.console import Console

from offramp.commands import EvaluateOptions, evaluate
from offramp.config import Spec
from offramp.policy import EVERYBODY, Policy
from offramp.results.outcome import outcome
from offramp.show.tables import run_table
from offramp.show.terminal import passes


def shown(evaluation):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(run_table(evaluation))
    return console.export_text()


def test_the_table_has_a_line_an_exit_and_the_mean(make_run):
    found = evaluate(EvaluateOptions(make_run()), page=False)
    text = shown(found)
    for k, (exit, train) in enumerate(zip(found.test.exits, found.train.exits, strict=True), 1):
        (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == [str(k)]]
        assert f"{exit.top1:.2f}" in row
        assert f"±{max(exit.top1_se, 100 / 41):.2f}" in row
        assert row[-4:] == [
            f"{exit.nll:.4f}",
            f"{exit.ece:.4f}",
            f"{exit.damping.mean:#.2g}",
            f"{train.damping.mean:#.2g}",
        ]
    assert f"mean {found.test.mean_top1:.2f} ±{found.test.mean_top1_se:.2f}" in " ".join(text.split())
    assert "40 images of arrays/test" in text
    assert "±: standard error over the images" in text
    assert "52 training images" in text


@pytest.mark.parametrize(("settings", "absent"), [({"damping": False}, "F[N+1]"), ({}, "top-5")])
def test_what_does_not_apply_is_left_out(make_run, settings, absent):
    assert absent not in shown(evaluate(EvaluateOptions(make_run(exits=1, **settings)), page=False))


def test_brackets_in_names_are_no_markup(make_run):
    found = evaluate(EvaluateOptions(make_run(exits=1)), page=False)
    for path in ("photos[old]", "x[/old]"):
        data = dataclasses.replace(found.config.data, source=Spec(f"folder:/data/{path}"))
        odd = dataclasses.replace(found, config=dataclasses.replace(found.config, data=data))
        assert f"folder:/data/{path}: 40 images" in shown(odd)


def test_top5_is_shown_for_many_classes(make_run):
    assert "top-5" in shown(evaluate(EvaluateOptions(make_run(exits=1, num_classes=12)), page=False))


def test_no_training_images_no_column(make_run):
    assert "F[N+1] train" not in shown(evaluate(EvaluateOptions(make_run(exits=1), train_limit=0), page=False))


def test_the_sentence_says_what_the_policy_does_and_a_line_which_was_left_aside(make_run):
    run = make_run()
    assert "Under thresholds found for a drop of 0.5 points" in shown(evaluate(EvaluateOptions(run), page=False))
    Policy((0.3, 0.3, EVERYBODY)).save(run / "policy.json")
    found = evaluate(EvaluateOptions(run), page=False)
    sentence = outcome(found)
    assert sentence.startswith("Under policy.json ")
    assert " ".join(shown(found).split()).startswith(sentence)
    Policy((0.3, EVERYBODY)).save(run / "policy.json")
    assert "policy.json was left aside." in shown(evaluate(EvaluateOptions(run), page=False))


@pytest.mark.usefixtures("undrawn")
def test_thresholds_that_rest_on_few_images_are_warned_of(make_run):
    few = evaluate(EvaluateOptions(make_run()))
    assert "Warning: thresholds rest on 4 images, fewer than 200" in " ".join(shown(few).split())
    assert "thresholds rest on 4 images" in few.run.report.read_text()
    assert few.to_json()["dynamic"]["search_images"] == 4
    enough = dataclasses.replace(few, dynamic=dataclasses.replace(few.dynamic, search_images=200))
    assert "Warning" not in shown(enough)


def test_why_nothing_is_said_of_thresholds_is_said_but_with_one_exit(make_run, tiny_parts):
    tiny_parts.val.search.name = "mine/half"
    assert "No dynamic inference: " in shown(evaluate(EvaluateOptions(make_run()), page=False, parts=tiny_parts))
    assert "No dynamic inference" not in shown(evaluate(EvaluateOptions(make_run("one", exits=1)), page=False))


def test_progress_is_silent_where_standard_error_is_no_terminal(capsys):
    with passes() as show:
        show("test", 1, 2)
        show("test", 2, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == ""
