import contextlib
import csv
import dataclasses
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from offramp import data
from offramp.cli import main
from offramp.commands import BenchOptions, PredictOptions, bench, predict
from offramp.costs import cost
from offramp.data import Inputs
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import record
from offramp.files import RunFolder, load
from offramp.network import EarlyExitNet
from offramp.policy import CERTIFICATE, EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import Engine, Form, Plan, Program, Tuning
from offramp.storage import load_tensors, save_tensors, weights_hash


@pytest.fixture
def files(tmp_path, tiny_parts) -> list[Path]:
    """The test images, as files in an order that is not that of their names."""
    (tmp_path / "images").mkdir()
    paths = []
    for i, pixels in enumerate(tiny_parts.test.pixels_SCHW[tiny_parts.test.indices_S]):
        paths.append(tmp_path / "images" / f"{(7 * i) % 40}.png")
        Image.fromarray(pixels[0].numpy()).save(paths[-1])
    return paths


@pytest.fixture
def run(make_run, tiny_parts) -> Path:
    folder = make_run()
    tiny_parts.train.inputs().save(folder / "input.json")
    return folder


def halving(network: EarlyExitNet, parts: data.Parts, measure: Measure = Measure()) -> Policy:  # noqa: B008
    """At every exit half of the test images that reach it leave."""
    confidence_KS, _ = measure.over(record(network, parts.test).logits_KSC, network.num_classes)
    thresholds, here_S = [], torch.ones(confidence_KS.shape[1], dtype=torch.bool)
    for confidence_S in confidence_KS[:-1]:
        middle = confidence_S[here_S].sort().values
        thresholds.append(middle[len(middle) // 2 - 1 : len(middle) // 2 + 1].mean().item())  # between two images
        here_S &= confidence_S < thresholds[-1]
    return Policy((*thresholds, EVERYBODY), measure)


@pytest.mark.parametrize(
    ("measure", "batch_size"), [(Measure(), 1), (Measure("margin", renormalise=True), 7), (Measure("entropy"), 64)]
)
def test_predictions_are_what_the_policy_chooses_on_recorded_logits(measure, batch_size, run, files, tiny_parts):
    network = load(run)
    policy = halving(network, tiny_parts, measure)
    choice = policy.choose(record(network, tiny_parts.test).logits_KSC, network.num_classes)
    found = list(predict(PredictOptions(run, files, batch_size=batch_size), policy=policy))
    assert [one.file for one in found] == [str(file) for file in files]
    assert [one.label for one in found] == choice.labels_S.tolist()
    assert [one.class_name for one in found] == [f"<{one.label}>" for one in found]
    assert [one.exit - 1 for one in found] == choice.exits_S.tolist()
    assert {one.exit for one in found} == {1, 2, 3}
    torch.testing.assert_close(
        torch.tensor([one.confidence for one in found]), choice.confidence_S, atol=1e-4, rtol=1e-4
    )


def test_operations_are_those_of_the_stages_and_heads_on_the_way(run, files, tiny_parts):
    costs = cost(load(run), (1, 8, 8))
    whole = costs.exits[-1].operations
    first, *_ = halving(load(run), tiny_parts).thresholds
    policy = Policy((first, NOBODY, EVERYBODY))  # the second head never runs
    predictions = predict(PredictOptions(run, files), policy=policy)
    found = {one.exit: one.operations for one in predictions}
    skipped = costs.heads[1].operations
    assert found == {1: costs.exits[0].operations / whole, 3: (whole - skipped) / whole}
    spent = [found[one.exit] for one in predict(PredictOptions(run, files), policy=policy)]
    assert predictions.mean_operations == pytest.approx(sum(spent) / len(spent))
    assert sum(predictions.exits_K) == len(files)


def test_without_a_policy_the_last_exit_answers_and_no_other_head_runs(run, files, tiny_parts):
    predictions = predict(PredictOptions(run, files))
    found = list(predictions)
    logits_SC = record(load(run), tiny_parts.test).logits_KSC[-1]
    assert [one.label for one in found] == logits_SC[:, :4].argmax(1).tolist()
    costs = cost(load(run))
    assert {(one.exit, one.operations) for one in found} == {
        (3, costs.path[-1].operations / costs.exits[-1].operations)
    }
    assert predictions.policy is predictions.policy_file is None


def test_the_policy_of_the_run_is_followed_and_another_goes_before(run, files, tmp_path):
    Policy((EVERYBODY,) * 3).save(run / "policy.json")
    predictions = predict(PredictOptions(run, files))
    assert {one.exit for one in predictions} == {1}
    assert predictions.policy_file == run / "policy.json"
    Policy((NOBODY, EVERYBODY, EVERYBODY)).save(tmp_path / "other.json")
    assert {one.exit for one in predict(PredictOptions(run, files, policy=tmp_path / "other.json"))} == {2}
    assert {one.exit for one in predict(PredictOptions(run, files, policy=str(tmp_path / "other.json")))} == {2}


@pytest.fixture(scope="module")
def tunings() -> dict[str, Tuning]:
    return {}


@pytest.fixture
def tune(run, tiny_parts, tunings) -> Callable[..., None]:
    """`tune(policy, plan, found={})`: a tuning in the run's `bench.json` whose streams run under `plan`."""

    def write(policy: Policy, plan: Plan, /, **changes: Any) -> None:
        key = repr(policy)
        if key not in tunings:  # every run here has the same weights
            images = next(iter(tiny_parts.test.batches())).images_BCHW
            tunings[key] = Engine(load(run), policy).tune(images, batch_sizes=(1, 8), forms=(Form(),), seconds=0.05)
        tuning = dataclasses.replace(tunings[key], stream=plan).to_json()
        (run / "bench.json").write_text(json.dumps({"tuning": {**tuning, **changes}}))

    return write


@pytest.mark.parametrize(
    ("plan", "asks"),
    [
        (Plan(chunk=8), (1, 2, 3)),
        (Plan(asks=(0,)), (1, 3)),
        (Plan(asks=(1,), sizes=()), (2, 3)),
        (Plan(straight=True), (3,)),
    ],
)
def test_a_tuning_is_adopted_and_what_it_leaves_unasked_is_counted_so(plan, asks, run, files, tiny_parts, tune):
    network = load(run)
    policy, costs = halving(network, tiny_parts), cost(network)
    policy.save(run / "policy.json")
    tune(policy, plan)
    predictions = predict(PredictOptions(run, files))
    found = list(predictions)
    assert (predictions.tuned, predictions.differs, predictions.asks) == (True, (), asks)
    # An exit that is not asked takes nobody: the policy with its threshold out of reach, on recorded logits.
    thresholds = tuple(one if k in asks else NOBODY for k, one in enumerate(policy.thresholds, 1))
    choice = Policy(thresholds, policy.measure).choose(record(network, tiny_parts.test).logits_KSC, network.num_classes)
    assert [one.label for one in found] == choice.labels_S.tolist()
    assert [one.exit - 1 for one in found] == choice.exits_S.tolist()
    assert {one.exit for one in found} == set(asks)
    assert predictions.exits_K == choice.exits_S.bincount(minlength=3).tolist()
    for one in found:
        spent = sum(count.operations for count in costs.stages[: one.exit])
        spent += sum(costs.heads[k - 1].operations for k in asks if k <= one.exit)
        assert one.operations == pytest.approx(spent / costs.exits[-1].operations)


def test_what_was_benched_is_adopted(run, files, tiny_parts, monkeypatch):
    monkeypatch.setattr(Engine, "tune", partialmethod(Engine.tune, seconds=0.05))
    halving(load(run), tiny_parts).save(run / "policy.json")
    assert not predict(PredictOptions(run, files)).tuned
    measured = bench(BenchOptions(run, batches=(8,), limit=8, rounds=5, seconds=0.2, backend="torch"))
    predictions = predict(PredictOptions(run, files))
    assert predictions.tuned
    assert predictions.asks == measured.modes["stream"].asks


def test_a_tuning_for_onnxruntime_is_adopted(run, files, tiny_parts, tune, monkeypatch):
    policy = halving(load(run), tiny_parts)
    before = list(predict(PredictOptions(run, files), policy=policy))
    tune(policy, Plan(), form=dataclasses.asdict(Form(backend="onnxruntime")))
    predictions = predict(PredictOptions(run, files), policy=policy)
    assert (predictions.tuned, predictions.differs) == (True, ())
    entered, forms = Program.enter, set()
    monkeypatch.setattr(Program, "enter", lambda self, images: forms.add(self.form) or entered(self, images))
    after = list(predictions)
    assert forms == {Form(backend="onnxruntime")}
    for one, other in zip(after, before, strict=True):
        assert (one.file, one.label, one.exit) == (other.file, other.label, other.exit)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_a_tuning_of_another_machine_is_not_adopted_and_it_is_said_what_differs(run, files, tiny_parts, tune):
    policy = halving(load(run), tiny_parts)
    before = list(predict(PredictOptions(run, files), policy=policy))
    conditions = {"device": "another", "threads": 99, "torch": torch.__version__, "kernels_kept": 7}
    tune(policy, Plan(straight=True), conditions=conditions)
    predictions = predict(PredictOptions(run, files), policy=policy)
    assert list(predictions) == before
    assert (predictions.tuned, predictions.asks) == (False, (1, 2, 3))
    assert [one.split(":")[0] for one in predictions.differs] == ["device", "threads", "kernels_kept"]


@pytest.mark.parametrize("before", [True, False], ids=["tuned before it was certified", "by an earlier version"])
def test_a_tuning_in_bf16_is_not_adopted_under_a_certificate_and_it_is_said(before, run, files, tiny_parts, tune):
    policy = halving(load(run), tiny_parts)
    certified = dataclasses.replace(policy, found={CERTIFICATE: {}})
    answers = list(predict(PredictOptions(run, files), policy=certified))
    tune(policy if before else certified, Plan(straight=True), form=dataclasses.asdict(Form(precision="bf16")))
    predictions = predict(PredictOptions(run, files), policy=certified)
    assert list(predictions) == answers
    assert predictions.differs == ("torch, bf16: the certificate is of answers in float32",)
    assert not predictions.tuned
    if before:
        assert predict(PredictOptions(run, files), policy=policy).tuned


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "0" * 64},
        {"policy": {"measure": {}, "thresholds": [], "certified": False}},
        {"plans": {}},
        {"stream": {"asks": [7]}},
        {"format": 99},
    ],
    ids=str,
)
def test_a_tuning_that_is_not_for_this_is_passed_over(change, run, files, tiny_parts, tune):
    policy = halving(load(run), tiny_parts)
    before = list(predict(PredictOptions(run, files), policy=policy))
    tune(policy, Plan(straight=True), **change)
    predictions = predict(PredictOptions(run, files), policy=policy)
    assert list(predictions) == before
    assert (predictions.tuned, predictions.differs) == (False, ())


@pytest.mark.parametrize(("plan", "adopted"), [(Plan(asks=(0,)), False), (Plan(straight=True), True), (Plan(), True)])
def test_a_certified_policy_is_never_closed_in_part(plan, adopted, run, files, tiny_parts, tune):
    policy = dataclasses.replace(halving(load(run), tiny_parts), found={CERTIFICATE: {}})
    tune(policy, plan)
    predictions = predict(PredictOptions(run, files), policy=policy)
    exits = {one.exit for one in predictions}
    assert predictions.tuned == adopted
    assert exits == ({3} if plan.straight else {1, 2, 3})


def test_a_policy_for_something_else_is_refused(run, files):
    tensors, _ = load_tensors(run / "weights.safetensors")
    ours = Policy((EVERYBODY,) * 3, network=weights_hash(tensors))
    assert len(list(predict(PredictOptions(run, files), policy=ours))) == 40
    Policy((EVERYBODY,) * 3, network="0" * 64).save(run / "policy.json")
    with pytest.raises(UsageError, match="was found for the network with weights 000000000000"):
        predict(PredictOptions(run, files))
    with pytest.raises(UsageError, match="for 2 exits; the network has 3"):
        predict(PredictOptions(run, files), policy=Policy((EVERYBODY,) * 2))


def test_what_cannot_be_read_is_told_or_raised(run, files):
    files[3].write_bytes(b"no image")
    files[39].write_bytes(b"")
    errors = []
    predictions = predict(PredictOptions(run, files, batch_size=4), on_unreadable=errors.append)
    found = [one.file for one in predictions]
    assert found == [str(file) for i, file in enumerate(files) if i not in (3, 39)]
    assert [str(error).split()[0] for error in errors] == [str(files[3]), str(files[39])]
    assert predictions.unreadable == 2
    with pytest.raises(OfframpError, match="cannot be read as an image"):
        list(predict(PredictOptions(run, files)))
    nothing = predict(PredictOptions(run, [files[3]]), on_unreadable=errors.append)
    assert list(nothing) == []
    assert nothing.unreadable == 1


def test_files_are_read_only_as_far_as_needed(run, files, monkeypatch):
    reads = []
    original = Inputs.read
    monkeypatch.setattr(Inputs, "read", lambda self, path, **more: reads.append(path) or original(self, path, **more))
    predictions = predict(
        PredictOptions(run, files[:1] * 1000, batch_size=4), policy=Policy((NOBODY, NOBODY, EVERYBODY))
    )
    assert reads == []
    next(predictions)
    assert len(reads) < 200
    assert len(list(predictions)) == 999
    assert len(reads) == 1000


def test_a_run_from_before_gets_what_it_lacks_from_its_data(make_run, files, tiny_parts):
    run = make_run()
    before = (run / "config.json").read_bytes()
    found = list(predict(PredictOptions(run, files)))
    assert Inputs.load(run / "input.json") == tiny_parts.test.inputs()
    assert (run / "config.json").read_bytes() == before
    (run / "config.json").write_text(json.dumps({**json.loads(before), "data": None}))  # never asked for again
    assert list(predict(PredictOptions(run, files))) == found


def test_a_folder_that_is_not_writable_is_no_hindrance(make_run, files, monkeypatch):
    run = make_run()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert len(list(predict(PredictOptions(run, files)))) == 40
    assert not (run / "input.json").exists()


def float_data() -> data.Parts:
    images = torch.arange(30 * 64).view(30, 1, 8, 8).float()
    return data.arrays(images.numpy(), (torch.arange(30) % 4).numpy(), holdout=4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": None}, r"trained on data made by hand, and has no input\.json. From Python: .*inputs="),
        (
            {"data": {"source": {"name": f"{__name__}:float_data", "args": {}}}},
            r"no known way from an image file .* the images of arrays/train are not 8-bit pixels",
        ),
        ({"images": {"train": "another"}}, "training images found now are not those"),
    ],
)
def test_where_there_is_no_way_in_it_is_said_why(settings, words, make_run, files, tiny_parts):
    run = make_run(**settings)
    with pytest.raises(UsageError, match=words):
        predict(PredictOptions(run, files))
    assert not (run / "input.json").exists()
    assert len(list(predict(PredictOptions(run, files), inputs=tiny_parts.test.inputs()))) == 40


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (Inputs(("a", "b"), (1, 8, 8), (0.0,), (1.0,), "central-fit"), "2 class names for 4 classes"),
        (Inputs(tuple("abcd"), (1, 9, 9), (0.0,), (1.0,), "central-fit"), r"shape \(1, 8, 8\), not \(1, 9, 9\)"),
    ],
)
def test_an_input_that_does_not_fit_the_network_is_refused(inputs, words, run, files):
    inputs.save(run / "input.json")
    with pytest.raises(UsageError, match=words):
        predict(PredictOptions(run, files))


def test_weights_that_are_not_finite_are_a_failure_with_the_file(run, files):
    network = load(run)
    torch.nn.init.constant_(network.exits[2][-1].bias, float("nan"))
    save_tensors(RunFolder(run).weights, network.state_dict())
    with pytest.raises(OfframpError, match=rf"Exit 3 gives logits that are not finite for {files[0]}"):
        list(predict(PredictOptions(run, files)))


# -- the command -------------------------------------------------------------------------------------------------------

NAMES = ["a [bold].png", 'b,"quoted".png', "sub/c.png", "sub/d.png", "sub/e.png"]


@pytest.fixture
def images(tmp_path, parts):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, pixels in zip(NAMES, parts.test.pixels_SCHW[parts.test.indices_S], strict=False):
        Image.fromarray(pixels[0].numpy()).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def trained(make_trained, parts, tmp_path):
    folder = make_trained()
    parts.test.inputs().save(tmp_path / "run" / "input.json")
    Policy((0.6, NOBODY, EVERYBODY)).save(tmp_path / "run" / "policy.json")
    return folder


def test_csv_and_json_lines_say_the_same_as_python(trained, images, capsys):
    expected = list(predict(PredictOptions(trained, [images])))
    assert len(expected) == 5
    assert main(["predict", trained, str(images), "--format", "csv", "--batch", "2"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert main(["predict", trained, str(images), "--format", "jsonl", "--batch-size", "2"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, row, values in zip(expected, rows, objects, strict=True):
        assert row.keys() == values.keys() == {"file", "label", "class_name", "exit", "confidence", "operations"}
        assert row == {name: str(value) for name, value in values.items()}
        assert values == pytest.approx(dataclasses.asdict(one), abs=1e-6)
    assert [os.path.relpath(row["file"], images) for row in rows] == NAMES


def test_a_tuning_is_named_in_the_summary_and_one_line_says_why_it_is_not_used(
    trained, images, tiny, parts, tmp_path, capsys
):
    policy, file = Policy((0.6, 0.6, EVERYBODY)), tmp_path / "run" / "bench.json"
    policy.save(tmp_path / "run" / "policy.json")
    looked_at = next(iter(parts.test.batches())).images_BCHW
    found = Engine(tiny, policy).tune(looked_at, batch_sizes=(8,), forms=(Form(),), seconds=0.05)
    tuning = dataclasses.replace(found, stream=Plan(asks=(0,))).to_json()
    file.write_text(json.dumps({"tuning": tuning}))
    assert main(["predict", trained, str(images), "--format", "csv"]) == 0
    (summary,) = capsys.readouterr().err.splitlines()
    assert summary.startswith(f"5 images under {trained}/policy.json, tuned by bench.json (asks exits 1, 3): ")
    assert ", 0.0% at exit 2, " in summary
    file.write_text(json.dumps({"tuning": {**tuning, "conditions": {**tuning["conditions"], "threads": 99}}}))
    assert main(["predict", trained, str(images), "--format", "csv"]) == 0
    note, summary = capsys.readouterr().err.splitlines()
    assert note.startswith(f"{trained}/bench.json is not used (threads: tuned for 99, here ")
    assert note.endswith(f"`offramp bench {trained}` tunes anew.")
    assert summary.startswith(f"5 images under {trained}/policy.json: ")


@pytest.mark.parametrize(("page", "headers"), [(2, 3), (5, 1), (100, 1)])
def test_tables_for_people_have_a_row_an_image(page, headers, trained, images, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["offramp.commands.predict"], "PAGE", page)
    monkeypatch.chdir(images)
    assert main(["predict", trained, "."]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert sum(line.endswith("confidence   operations") for line in lines) == headers
    rows = [line for line in lines if line.endswith("%")]
    expected = list(predict(PredictOptions(trained, ["."])))
    for row, one in zip(rows, expected, strict=True):
        assert row.startswith(f" {one.file} ")
        numbers = [one.class_name, str(one.exit), f"{one.confidence:.4f}", f"{one.operations:.1%}"]
        assert row.split()[-4:] == numbers


def test_a_long_name_is_folded_and_not_cut(trained, images, capsys, monkeypatch):
    (images / NAMES[0]).rename(images / ("w" * 150 + ".png"))
    monkeypatch.chdir(images)
    assert main(["predict", trained, "."]) == 0
    assert capsys.readouterr().out.count("w") == 150


def test_without_a_policy_it_says_so_with_the_way_out(trained, images, tmp_path, capsys):
    (tmp_path / "run" / "policy.json").unlink()
    assert main(["predict", trained, str(images), "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert {row["exit"] for row in csv.DictReader(io.StringIO(captured.out))} == {"3"}
    note, summary = captured.err.splitlines()
    assert "the last exit answers every image" in note
    assert f"`offramp policy {trained}` or `offramp certify {trained}`" in note
    assert summary.startswith("5 images: 0.0% at exit 1")
    Policy((EVERYBODY,) * 3).save(tmp_path / "all.json")
    assert main(["predict", trained, str(images / NAMES[0]), "--policy", str(tmp_path / "all.json")]) == 0
    assert capsys.readouterr().err.startswith(f"1 image under {tmp_path / 'all.json'}: 100.0% at exit 1")


def test_files_that_cannot_be_read_are_named_and_the_others_answered(trained, images, capsys):
    (images / "broken.png").write_bytes(b"no")
    (images / "sub" / "scan.tif").write_bytes(b"II*")
    assert main(["predict", trained, str(images), "--format", "csv"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    first, second, summary, last = captured.err.splitlines()
    assert first.startswith(f"{images / 'broken.png'} cannot be read as an image")
    assert second.startswith(f"{images / 'sub' / 'scan.tif'} cannot be read as an image")
    assert summary.startswith("5 images under")
    assert last == "offramp: 2 of 7 files could not be read."


def test_nothing_that_can_be_read_is_a_failure(trained, images, capsys):
    (images / "broken.png").write_bytes(b"no")
    assert main(["predict", trained, str(images / "broken.png")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "offramp: The file could not be read."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN"], "Name at least one image or folder"),
        (["RUN", "IMAGES", "nowhere.png"], "There is no file or folder nowhere.png"),
        (["RUN", "RUN"], "There is no image (.jpeg"),
        (["IMAGES", "IMAGES"], "is not a run"),
        (["RUN", "IMAGES", "--policy", "none.json"], "There is no file none.json"),
        (["RUN", "IMAGES", "--batch", "0"], "batch-size must be a whole number of at least 1, not 0"),
        (["RUN", "IMAGES", "--device", "cuda:9"], "cuda"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(arguments, words, trained, images, capsys):
    named = {"RUN": trained, "IMAGES": str(images)}
    assert main(["predict", *(named.get(argument, argument) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


def test_lines_go_to_standard_output_also_when_progress_is_shown_and_names_keep_their_bytes(trained, images):
    odd = os.fsencode(images / "sub") + b"/caf\xe9.png"
    os.rename(os.fsencode(images / "sub" / "c.png"), odd)
    command = [sys.executable, "-m", "offramp", "predict", trained, str(images), "--format", "csv"]
    terminal, end = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(end)
    said = os.read(terminal, 100_000)
    os.close(terminal)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[3].split(b",")[0] == odd
    assert b"images under" in said
    assert b"csv" not in said


HOSTILE = [
    "new\nline,x.png",
    "\x1b]0;title\x07.png",
    "=1+1.png",
    "+1.png",
    "-1.png",
    "@sum.png",
    "\ttab.png",
    "\rreturn.png",
    '"q".png',
]


def test_a_name_stays_one_row_and_is_no_formula(trained, images, capsys, tmp_path, monkeypatch):
    """A name with a line break was two rows on Python 3.11; one that begins with = is run by a spreadsheet."""
    picture = (images / "sub" / "c.png").read_bytes()
    (tmp_path / "odd").mkdir()
    for name in HOSTILE:
        (tmp_path / "odd" / name).write_bytes(picture)
    inputs = tmp_path / "run" / "input.json"
    inputs.write_text(
        json.dumps({**json.loads(inputs.read_text()), "class_names": ["=cmd|' /C calc'!A0", "a\r\nb", "-2"]})
    )
    monkeypatch.chdir(tmp_path / "odd")
    assert (
        main(
            ["predict", trained, *(name if name[0] not in "+-" else f"./{name}" for name in HOSTILE), "--format", "csv"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.endswith("\r\n")
    rows = list(csv.reader(io.StringIO(out, newline=""), strict=True))
    assert [len(row) for row in rows] == [6] * (len(HOSTILE) + 1)
    assert [row[0] for row in rows[1:]] == [
        *HOSTILE[:2],
        "'=1+1.png",
        "./+1.png",
        "./-1.png",
        "'@sum.png",
        "'\ttab.png",
        "'\rreturn.png",
        '"q".png',
    ]
    assert {row[2] for row in rows[1:]} <= {"'=cmd|' /C calc'!A0", "a\r\nb", "'-2"}
    assert all(float(row[4]) <= 1 for row in rows[1:])


def test_no_control_character_of_a_name_reaches_a_terminal(trained, images, capsys, tmp_path, monkeypatch):
    evil = "\x1b[2J\x9b\x07\u202e\u2028\x7f\n"
    for content, name in ((b"no", "broken"), ((images / "sub" / "c.png").read_bytes(), "good")):
        (images / f"{name}{evil}.png").write_bytes(content)
    os.rename(images / "sub" / "c.png", os.fsencode(images / "sub") + b"/\x9bc.png")
    inputs = tmp_path / "run" / "input.json"
    inputs.write_text(json.dumps({**json.loads(inputs.read_text()), "class_names": [evil, evil, "ä" + evil]}))
    (tmp_path / "run").rename(tmp_path / f"run{evil}")
    moved = str(tmp_path / f"run{evil}")
    for arguments in (
        ["predict", moved, str(images)],
        ["predict", moved, f"nowhere{evil}"],
        ["evaluate", f"none{evil}"],
        [f"--{evil}"],
    ):
        with contextlib.suppress(SystemExit):
            main(arguments)
        captured = capsys.readouterr()
        assert not set(captured.out + captured.err) & set("\x1b\x9b\x07\u202e\u2028\x7f\udc9b")
        assert "\\x1b[2J\\x9b\\x07\\u202e\\u2028\\x7f" in captured.out + captured.err
        assert arguments[0] != "evaluate" or len(captured.err.splitlines()) == 1


def test_an_image_of_too_many_pixels_is_named_and_the_list_goes_on(trained, images, capsys):
    Image.new("1", (3000, 1000)).save(images / "large.png")
    os.mkfifo(images / "fifo.png")
    assert main(["predict", trained, str(images), "--format", "csv", "--max-megapixels", "2"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert f"{images / 'large.png'} has 1000 times 3000 pixels, more than 2 million" in captured.err
    assert f"{images / 'fifo.png'} cannot be read as an image (it is no regular file)" in captured.err
    assert main(["predict", trained, str(images / "large.png"), "--format", "csv"]) == 0
    assert main(["predict", trained, str(images), "--max-megapixels", "0"]) == 2
