import contextlib
import json
import os

import pytest
import torch

import offramp
from offramp import data
from offramp.cli import main
from offramp.commands import EvaluateOptions, Watch, evaluate
from offramp.commands.sample import Sample
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record, anytime, record, weights_hash
from offramp.files import RunFolder, load
from offramp.files.evaluation import current
from offramp.policy import EVERYBODY, Measure, Policy
from offramp.results.dynamic import dynamic
from offramp.storage import load_tensors, save_tensors


def read_json(run):
    return json.loads((run / "evaluation.json").read_text())


def change_weights(run):
    tensors, _ = load_tensors(run / "weights.safetensors")
    tensors["exits.0.2.bias"] += torch.tensor([5.0, 0, 0, 0, 0])
    save_tensors(run / "weights.safetensors", tensors)


def test_figures_are_those_of_the_record_and_the_cost(make_run, tiny_parts):
    run = make_run()
    found = evaluate(EvaluateOptions(run), page=False)
    network = load(run)
    assert found.test == anytime(record(network, tiny_parts.test))
    assert found.train == anytime(record(network, tiny_parts.train.plain()))
    assert found.cost == offramp.cost(network)
    assert found.weights == weights_hash(network.state_dict())
    assert found.written == (run / "evaluation.json",)


def test_json_has_what_scripts_rely_on(make_run):
    run = make_run()
    found = evaluate(EvaluateOptions(run), page=False)
    values = read_json(run)
    assert values == json.loads(json.dumps(found.to_json()))
    assert len(values["exits"]) == 3
    for k, exit in enumerate(values["exits"]):
        figures, count = found.test.exits[k], found.cost.exits[k]
        assert (exit["operations"], exit["multiply_adds"]) == (count.operations, count.multiply_adds)
        assert exit["parameters"] == count.parameters
        assert (exit["top1"], exit["top1_se"], exit["nll"]) == (figures.top1, figures.top1_se, figures.nll)
        assert (exit["ece"], exit["top5"]) == (figures.ece, None)
        assert (exit["damping"], exit["a"]) == (figures.damping.mean, figures.damping.a)
        assert exit["train"]["damping"] == found.train.exits[k].damping.mean
        assert sum(exit["reliability"]["images"]) == sum(exit["damping_histogram"]) == values["images"] == 40
        assert len(exit["damping_histogram"]) == len(values["damping_edges"]) - 1
        assert 0 <= exit["top1"] <= 100
        assert 0 <= exit["ece"] <= 1
    assert values["mean_top1"] == pytest.approx(sum(exit["top1"] for exit in values["exits"]) / 3)
    assert [c["name"] for c in values["classes"]] == ["<0>", "<1>", "<2>", "<3>"]
    assert values["data"].endswith("tiny_data num_classes=4")
    assert "NaN" not in (run / "evaluation.json").read_text()


def test_without_the_neuron_damping_is_null(make_run):
    run = make_run(damping=False)
    evaluate(EvaluateOptions(run), page=False)
    values = read_json(run)
    assert values["damping_edges"] is None
    assert all(exit["damping"] is exit["a"] is exit["damping_histogram"] is None for exit in values["exits"])


def test_one_exit_and_many_classes(make_run):
    run = make_run(exits=1, num_classes=12)
    values = evaluate(EvaluateOptions(run), page=False).to_json()
    assert len(values["exits"]) == 1
    assert values["mean_top1"] == values["exits"][0]["top1"] <= values["exits"][0]["top5"]


@pytest.mark.parametrize("kind", [pytest.param("png", marks=pytest.mark.slow), "svg"])
def test_a_second_time_no_image_is_looked_at_and_every_byte_is_the_same(make_run, kind):
    run = make_run(exits=2)
    first = evaluate(EvaluateOptions(run, plots=kind), page=kind == "svg")
    before = {path: path.read_bytes() for path in first.written}
    watch = Watch(bars=lambda: contextlib.nullcontext(lambda *_: pytest.fail("a second pass")))
    second = evaluate(EvaluateOptions(run, plots=kind), page=kind == "svg", watch=watch)
    assert sorted(path.name for path in (run / "plots").iterdir()) == [
        f"{name}.{kind}" for name in ("accuracy", "damping", "dynamic", "reliability", "training")
    ]
    assert len(before) == (7 if kind == "svg" else 6)
    assert {path: path.read_bytes() for path in second.written} == before


def saved(run, *thresholds, network=None):
    Policy((*thresholds, EVERYBODY), network=network).save(run / "policy.json")


def test_dynamic_figures_are_those_of_the_two_records(make_run, tiny_parts):
    run = make_run()
    found = evaluate(EvaluateOptions(run), page=False)
    network = load(run)
    search, test = record(network, tiny_parts.val.search), record(network, tiny_parts.test)
    costs = offramp.cost(network)
    assert found.dynamic == dynamic(search, test, costs, run / "policy.json", Measure())
    assert found.no_dynamic is None
    assert Record.load(run / "records" / "search.safetensors").split == "arrays/search"
    assert read_json(run)["dynamic"] == json.loads(json.dumps(found.dynamic.to_json()))
    again = evaluate(EvaluateOptions(run, renormalise=True), page=False).dynamic
    assert again == dynamic(search, test, costs, run / "policy.json", Measure(renormalise=True))


@pytest.mark.usefixtures("undrawn")
def test_the_certify_half_is_not_looked_at(make_run, tiny_parts, monkeypatch):
    monkeypatch.setattr(tiny_parts.val.certify, "batches", lambda **_: pytest.fail("certify was looked at"))
    monkeypatch.setattr(tiny_parts.val.certify, "read", lambda *_: pytest.fail("certify was looked at"))
    assert evaluate(EvaluateOptions(make_run()), parts=tiny_parts).dynamic is not None


def test_a_policy_that_comes_or_goes_is_seen_the_next_time(make_run):
    run = make_run()
    assert evaluate(EvaluateOptions(run), page=False).dynamic.source is None
    saved(run, 0.3, 0.3)
    assert evaluate(EvaluateOptions(run), page=False).dynamic.source == "policy.json"
    assert read_json(run)["dynamic"]["policy"]["thresholds"] == [0.3, 0.3, EVERYBODY]
    saved(run, 0.3, 0.3, network="0" * 64)
    assert evaluate(EvaluateOptions(run), page=False).dynamic.source is None
    assert "found for the network with weights 000000000000" in read_json(run)["dynamic"]["note"]


def test_without_held_out_images_everything_else_is_there(make_run, tiny_parts):
    run = make_run()
    kept = evaluate(EvaluateOptions(run), page=False)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": {**config["data"], "holdout": 0}}))
    found = evaluate(EvaluateOptions(run), page=False)
    assert found.dynamic is None
    assert found.test == kept.test
    assert read_json(run)["dynamic"] is None
    assert "holdout=0" in read_json(run)["no_dynamic"]


def test_one_exit_has_nowhere_to_leave_early_and_nothing_held_out_is_read(make_run):
    run = make_run(exits=1)
    assert evaluate(EvaluateOptions(run), page=False).dynamic is None
    assert "one exit" in read_json(run)["no_dynamic"]
    assert not (run / "records" / "search.safetensors").exists()


def test_other_held_out_images_give_no_thresholds(make_run, tiny_parts):
    images = {"train": tiny_parts.train.fingerprint(), "search": tiny_parts.val.search.fingerprint()}
    assert evaluate(EvaluateOptions(make_run("same", images=images)), page=False).dynamic is not None
    found = evaluate(EvaluateOptions(make_run("other", images={**images, "search": "0" * 64})), page=False)
    assert found.dynamic is None
    assert "not those that were held out" in found.no_dynamic


def test_parts_under_other_names_are_measured_but_give_no_thresholds(make_run, tiny_parts):
    tiny_parts.val.search.name = "mine/first-half"
    found = evaluate(EvaluateOptions(make_run()), parts=tiny_parts, page=False)
    assert len(found.test.exits) == 3
    assert found.dynamic is None
    assert "not on mine/first-half" in found.no_dynamic


def test_changed_weights_are_evaluated_anew(make_run, tiny_parts):
    run = make_run()
    old = evaluate(EvaluateOptions(run), page=False)
    change_weights(run)
    new = evaluate(EvaluateOptions(run), page=False)
    assert new.weights != old.weights
    assert new.test.exits[0].nll != old.test.exits[0].nll
    assert new.test == anytime(record(load(run), tiny_parts.test))


def test_an_old_evaluation_is_not_taken_for_a_current_one(make_run):
    run = make_run()
    assert current(RunFolder(run)) is None
    evaluate(EvaluateOptions(run, train_limit=0), page=False)
    assert current(RunFolder(run)).fingerprint == read_json(run)["fingerprint"]
    evaluate(EvaluateOptions(run, train_limit=0, renormalise=True), page=False)
    assert current(RunFolder(run)) is None
    evaluate(EvaluateOptions(run, train_limit=0), page=False)
    whole = read_json(run)
    damaged = ([whole], "x", {**whole, "exits": []}, {**whole, "exits": [{}]}, {**whole, "fingerprint": None})
    for content in (*damaged, *({k: v for k, v in whole.items() if k != key} for key in ("renormalised", "weights"))):
        (run / "evaluation.json").write_text(json.dumps(content))
        assert current(RunFolder(run)) is None
    (run / "evaluation.json").write_text(json.dumps(whole))
    assert current(RunFolder(run)).weights == whole["weights"]
    change_weights(run)
    assert current(RunFolder(run)) is None


def test_renormalised_likelihood_is_better_and_accuracy_the_same(make_run):
    run = make_run()
    kept, renormalised = (evaluate(EvaluateOptions(run, renormalise=r), page=False) for r in (False, True))
    for ours, theirs in zip(kept.test.exits, renormalised.test.exits, strict=True):
        assert ours.top1 == theirs.top1
        assert ours.nll > theirs.nll
    assert read_json(run)["renormalised"] is True


def test_a_limit_spreads_over_the_training_images_and_zero_means_none(make_run, tiny_parts):
    run = make_run()
    assert evaluate(EvaluateOptions(run, train_limit=7), page=False).train == anytime(
        record(load(run), Sample(tiny_parts.train, 7))
    )
    assert read_json(run)["train_images"] == 7
    assert evaluate(EvaluateOptions(run, train_limit=0), page=False).train is None
    assert read_json(run)["exits"][0]["train"] is None


def test_data_made_by_hand_is_asked_for_and_taken(make_run, tiny_parts):
    run = make_run(data=None)
    with pytest.raises(UsageError, match=r"offramp.commands.evaluate\(EvaluateOptions\('.*run'\), parts=..."):
        evaluate(EvaluateOptions(run))
    assert evaluate(EvaluateOptions(run), page=False, parts=tiny_parts).to_json()["data"] == "data of your own"


def test_a_network_made_by_hand_is_asked_for_and_taken(make_run):
    run = make_run()
    network = load(run)
    run = make_run(network=None)
    with pytest.raises(UsageError, match="built by hand"):
        evaluate(EvaluateOptions(run))
    assert len(evaluate(EvaluateOptions(run), page=False, into=network).test.exits) == 3


def test_what_is_no_finished_run_is_refused_and_nothing_is_written(make_run, tmp_path):
    with pytest.raises(UsageError, match="not a run"):
        evaluate(EvaluateOptions(tmp_path))
    run = make_run()
    (run / "weights.safetensors").unlink()
    before = sorted(os.listdir(run))
    with pytest.raises(UsageError, match="not finished"):
        evaluate(EvaluateOptions(run))
    assert sorted(os.listdir(run)) == before


def test_weights_that_are_not_finite_are_said_and_no_figures_are_written(make_run):
    run = make_run()
    tensors, _ = load_tensors(run / "weights.safetensors")
    tensors["exits.1.2.bias"][0] = float("nan")
    save_tensors(run / "weights.safetensors", tensors)
    with pytest.raises(OfframpError, match="Exit 2 gives logits that are not finite"):
        evaluate(EvaluateOptions(run))
    assert not (run / "evaluation.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_classes_whose_folders_have_names_that_are_not_utf8(make_run):
    names = [f"caf\udce9{n}" for n in range(4)]
    images, labels = torch.arange(6400).view(100, 8, 8).remainder(251).to(torch.uint8).numpy(), torch.arange(100) % 4
    parts = data.arrays(
        images[:60], labels[:60].numpy(), images[60:], labels[60:].numpy(), class_names=names, batch_size=16, holdout=8
    )
    run = make_run(data=None)
    evaluate(EvaluateOptions(run), parts=parts)
    assert [one["name"] for one in read_json(run)["classes"]] == names
    assert "caf?1" in (run / "report.html").read_text()


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_there_are_figures_but_no_page(make_run):
    run = make_run()
    assert evaluate(EvaluateOptions(run)).written == (run / "evaluation.json",)
    with pytest.raises(UsageError, match=r"pip install 'offramp\[report\]'"):
        evaluate(EvaluateOptions(run, plots="png"))


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_otherwise_a_table_and_where_the_files_lie(make_run, capsys):
    run = make_run()
    assert main(["evaluate", str(run), "--plots", "svg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("top-1 %" in line and "F[N+1] train" in line for line in lines)
    plots = ("accuracy", "dynamic", "training", "reliability", "damping")
    names = ["evaluation.json", *(f"plots/{n}.svg" for n in plots), "report.html"]  # the page to look at last
    assert lines[-7:] == [str(run / name) for name in names]
    assert all((run / name).is_file() for name in names)
