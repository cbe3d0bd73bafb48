import json
import math
import shutil

import pytest
import torch

from offramp.cli import main
from offramp.commands import CompareOptions, EvaluateOptions, Watch, compare, evaluate
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import weights_hash
from offramp.files import RunFolder
from offramp.results.comparison import Spread
from offramp.storage import save_tensors


def damping(strength):
    return {"name": "offramp.objectives.damping:Damping", "args": {"strength": strength}}


@pytest.fixture
def with_top1(make_run):
    """A run whose evaluation.json is replaced by figures of our choice."""

    def make(name, top1, *, fingerprint=None, **settings):
        run = make_run(name, exits=len(top1), **settings)
        evaluate(EvaluateOptions(run, train_limit=0), page=False)
        values = json.loads((run / "evaluation.json").read_text())
        for exit, value in zip(values["exits"], top1, strict=True):
            exit["top1"] = value
        values["mean_top1"] = sum(top1) / len(top1)
        values["fingerprint"] = fingerprint or values["fingerprint"]
        (run / "evaluation.json").write_text(json.dumps(values))
        return run

    return make


def test_spread_is_what_the_definitions_say():
    values = [61.0, 62.5, 60.1, 63.0, 61.9]
    mean = sum(values) / 5
    assert Spread.of(values) == Spread(
        mean=pytest.approx(mean),
        std=pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 4)),
        half_range=pytest.approx((63.0 - 60.1) / 2),
        n=5,
    )


def test_one_run_has_no_spread():
    assert Spread.of([3.5]) == Spread(3.5, None, None, 1)


def test_a_published_half_range_is_a_multiple_of_half_a_step():
    """Ambiguities, C1: accuracies on 10,000 images are multiples of 0.01, so half-ranges are of 0.005."""
    assert Spread.of([61.15, 62.50, 61.80]).half_range == pytest.approx(0.675, abs=1e-12)


def test_seeds_are_grouped_and_spread(with_top1):
    runs = [
        with_top1(f"a{seed}", top1, seed=seed) for seed, top1 in enumerate([(50.0, 60.0), (54.0, 61.0), (55.0, 65.0)])
    ]
    (group,) = compare(CompareOptions(runs)).groups
    assert group.label == "damping"
    assert group.differs == {}
    assert [run.seed for run in group.runs] == [0, 1, 2]
    assert group.exit(0, "top1") == Spread.of([50.0, 54.0, 55.0])
    assert group.exit(1, "top1") == Spread.of([60.0, 61.0, 65.0])
    assert group.mean_top1 == Spread.of([55.0, 57.5, 60.0])


def test_groups_are_labelled_and_paired_by_seed(with_top1):
    first = [with_top1(f"a{seed}", (50.0 + seed, 60.0), seed=seed) for seed in (0, 1, 2)]
    second = [with_top1(f"b{seed}", (51.0 + 2 * seed, 60.5), seed=seed, objective=damping(0.075)) for seed in (2, 1, 7)]
    comparison = compare(CompareOptions([*first, *second]))
    a, b = comparison.groups
    assert (a.label, b.label) == ("damping strength=0.005", "damping strength=0.075")
    assert b.differs == {"objective.damping.strength": 0.075}
    paired = comparison.against_first(b)
    assert paired.seeds == (1, 2)
    assert paired.exits == (Spread.of([53.0 - 51.0, 55.0 - 52.0]), Spread.of([0.5, 0.5]))
    assert paired.mean_top1 == Spread.of([1.25, 1.75])
    assert comparison.against_first(a) is None


def test_nothing_is_paired_without_a_common_seed_test_set_or_number_of_exits(with_top1):
    first = with_top1("a", (50.0, 60.0))
    others = [
        with_top1("b", (50.0, 60.0), seed=1, objective=damping(1.0)),
        with_top1("c", (50.0, 60.0), fingerprint="other", objective=damping(1.0)),
        with_top1("d", (50.0, 60.0, 70.0), objective=damping(1.0)),
    ]
    for other in others:
        comparison = compare(CompareOptions([first, other]))
        assert comparison.against_first(comparison.groups[1]) is None


def test_runs_measured_on_different_images_are_no_seeds_of_one_another(with_top1):
    runs = [with_top1("a", (50.0,), seed=0), with_top1("b", (50.0,), seed=1, fingerprint="f" * 64)]
    assert [group.label[:13] for group in compare(CompareOptions(runs)).groups] == ["damping test="] * 2


def test_fields_that_change_nothing_do_not_part_seeds(with_top1):
    ours = with_top1("a", (50.0,), seed=0, training={"epochs": 4, "seed": 0, "keep_checkpoints": 2})
    theirs = with_top1("b", (50.0,), seed=1, training={"epochs": 4, "seed": 1, "keep_checkpoints": 5})
    assert len(compare(CompareOptions([ours, theirs])).groups) == 1


def test_a_folder_stands_for_the_runs_in_it_in_natural_order(make_run, tmp_path):
    for seed in (10, 2, 0):
        make_run(f"many/seed-{seed}", seed=seed, exits=1)
    (group,) = compare(CompareOptions([tmp_path / "many"])).groups
    assert [run.path.name for run in group.runs] == ["seed-0", "seed-2", "seed-10"]


def test_unfinished_runs_are_left_out_of_a_folder_and_refused_by_name(make_run, tmp_path):
    make_run("many/seed-0", exits=1)
    unfinished = make_run("many/seed-1", exits=1, seed=1)
    (unfinished / "weights.safetensors").unlink()
    notes = []
    (group,) = compare(CompareOptions([tmp_path / "many"]), watch=Watch(note=notes.append)).groups
    assert len(group.runs) == 1
    assert notes[:1] == [f"{unfinished} is not finished and was left out."]
    with pytest.raises(UsageError, match="seed-1 is not finished"):
        compare(CompareOptions([unfinished]))


def test_a_run_named_twice_counts_once_and_a_copy_is_refused(make_run, tmp_path):
    run = make_run("run", exits=1)
    assert len(compare(CompareOptions([run, tmp_path / "run" / ".." / "run"])).groups[0].runs) == 1
    shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(UsageError, match=r"same run twice: configuration and seed \(0\)"):
        compare(CompareOptions([run, tmp_path / "copy"]))


def test_what_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds none: there is no config\.json"):
        compare(CompareOptions([tmp_path]))
    with pytest.raises(UsageError, match="nowhere is not a run"):
        compare(CompareOptions([tmp_path / "nowhere"]))


def test_missing_and_stale_evaluations_are_made_and_current_ones_used(make_run):
    fresh, missing, stale = (
        make_run(name, seed=seed, exits=1) for seed, name in enumerate(("fresh", "missing", "stale"))
    )
    evaluate(EvaluateOptions(fresh), page=False)
    evaluate(EvaluateOptions(stale), page=False)
    other = make_run("other", seed=9, exits=1)
    shutil.copy(other / "weights.safetensors", stale)
    notes = []
    comparison = compare(CompareOptions([fresh, missing, stale]), watch=Watch(note=notes.append))
    assert notes == [f"Evaluating {missing}", f"Evaluating {stale}"]
    assert comparison.groups[0].runs[2].figures == evaluate(EvaluateOptions(stale), page=False).summary()


def test_json_is_complete(with_top1):
    runs = [with_top1("a", (50.0, 60.0)), with_top1("b", (51.0, 62.0), objective=damping(0.1))]
    values = json.loads(json.dumps(compare(CompareOptions(runs)).to_json()))
    a, b = values["groups"]
    assert (a["n"], a["seeds"], a["runs"], a["against_first"]) == (1, [0], [str(runs[0])], None)
    assert a["mean_top1"] == {"mean": 55.0, "std": None, "half_range": None, "n": 1}
    assert [exit["top1"]["mean"] for exit in b["exits"]] == [51.0, 62.0]
    assert b["exits"][0].keys() == {"operations", "top1", "nll", "ece", "damping"}
    assert b["against_first"]["mean_top1"]["mean"] == 1.5
    assert [exit["mean"] for exit in b["against_first"]["exits"]] == [1.0, 2.0]


def test_without_the_neuron_there_is_no_spread_of_it(make_run):
    assert compare(CompareOptions([make_run(damping=False)])).groups[0].exit(0, "damping") is None


def test_runs_of_hand_made_data_need_their_evaluation_first(make_run, tiny_parts):
    run = make_run(data=None)
    with pytest.raises(UsageError, match=r"offramp\.commands\.evaluate\(EvaluateOptions\(.*\), parts="):
        compare(CompareOptions([run]))
    evaluate(EvaluateOptions(run), page=False, parts=tiny_parts)
    assert compare(CompareOptions([run])).data_names == ("data of your own",)


def test_a_damaged_configuration_is_said(make_run):
    run = make_run()
    RunFolder(run).config.write_text("{")
    with pytest.raises(OfframpError, match="is damaged"):
        compare(CompareOptions([run]))


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run that was evaluated: what compare reads of it, no more."""

    def make(name, top1, seed=0, strength=0.1, init=None):
        folder = tmp_path / name
        tensors = {"weight": torch.tensor(top1)}
        save_tensors(folder / "weights.safetensors", tensors)
        config = {
            "format": 1,
            "objective": {"name": "m:Damping", "args": {"strength": strength}},
            "network": None,
            "data": None,
            "training": {"seed": seed, "init": init},
        }
        exits = [{"operations": 10, "top1": value, "nll": 1.0, "ece": 0.1, "damping": None} for value in top1]
        evaluation = {
            "format": 1,
            "renormalised": False,
            "weights": weights_hash(tensors),
            "data": "digits",
            "fingerprint": "f",
            "exits": exits,
            "mean_top1": sum(top1) / len(top1),
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return str(folder)

    return make


def test_a_table_otherwise_and_files_on_request(run, tmp_path, capsys):
    runs = [run("a", [50.0, 60.0]), run("b", [52.0, 62.0], strength=0.2)]
    for name in ("out.md", "out.html"):
        assert main(["compare", *runs, "--out", str(tmp_path / name)]) == 0
        captured = capsys.readouterr()
        assert "Damping strength=0.2" in captured.out
        assert captured.out.splitlines()[-1] == str(tmp_path / name)
        assert "57.00" in (tmp_path / name).read_text()


def test_a_label_that_no_file_can_hold_is_written_with_question_marks(run, tmp_path, capsys):
    """A label may hold a file's name, such as that of the weights a run starts from, and that need not be UTF-8."""
    runs = [run("a", [50.0, 60.0], init="a\udcff.pth"), run("b", [52.0, 62.0])]
    for out, plot in (("out.md", "plot.svg"), ("out.html", "plot.png")):
        assert main(["compare", *runs, "--out", str(tmp_path / out), "--plot", str(tmp_path / plot)]) == 0
        assert "init=a?.pth" in (tmp_path / out).read_text()
    assert "init=a?.pth" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "start"), [("plot.svg", b"<?xml"), ("plot.png", b"\x89PNG")])
def test_the_plot_as_a_file(run, tmp_path, capsys, name, start):
    runs = [run("a", [50.0, 60.0]), run("b", [52.0, 62.0], strength=0.2)]
    assert main(["compare", *runs, "--plot", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_without_matplotlib_a_plot_is_refused_before_anything_is_evaluated(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("offramp.show.figures.available", lambda: False)
    folder = run("a", [50.0])
    (tmp_path / "a" / "evaluation.json").unlink()
    assert main(["compare", folder, "--plot", str(tmp_path / "plot.svg")]) == 2
    captured = capsys.readouterr()
    assert captured.err == "offramp: Plots need matplotlib: pip install 'offramp[report]'.\n"
    assert not (tmp_path / "plot.svg").exists()


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_evaluated(
    run, tmp_path, capsys, monkeypatch, option
):
    folder = run("a", [50.0])
    (tmp_path / "a" / "evaluation.json").unlink()
    ending = ".html" if option == "--out" else ".svg"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for name in ("no/where", "x"):
        assert main(["compare", folder, option, str(tmp_path / (name + ending))]) == 1
        captured = capsys.readouterr()
        assert f"{ending} cannot be written: {tmp_path} is not writable" in captured.err
        assert len(captured.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "config.json", "weights.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name at least one run"),
        (["nowhere"], "nowhere is not a run and holds none"),
        (["run", "--out", "x.pdf"], "should end in .html or .md"),
        (["run", "--plot", "x.pdf"], "should end in .svg or .png"),
    ],
)
def test_wrong_use_is_one_line(run, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    run("run", [50.0])
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
