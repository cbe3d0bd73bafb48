import json

import pytest
import torch

from offramp.cli import main
from offramp.evaluation import weights_hash
from offramp.storage import save_tensors


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


def test_json_is_one_object_on_standard_output(run, tmp_path, capsys):
    for seed in (0, 1):
        run(f"a/seed-{seed}", [50.0 + seed, 60.0], seed)
    other = run("b", [52.0, 62.0], strength=0.2)
    assert main(["compare", str(tmp_path / "a"), other, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert len(captured.out.splitlines()) == 1
    a, b = json.loads(captured.out)["groups"]
    assert (a["label"], b["label"]) == ("Damping strength=0.1", "Damping strength=0.2")
    assert a["mean_top1"] == {"mean": 55.25, "std": pytest.approx(0.5**0.5 / 2), "half_range": 0.25, "n": 2}
    assert b["against_first"]["mean_top1"] == {"mean": 2.0, "std": None, "half_range": None, "n": 1}
    assert b["against_first"]["seeds"] == [0]


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
    for name, said in (("no/where", "there is no folder"), ("x", "is not writable")):
        assert main(["compare", folder, option, str(tmp_path / (name + ending))]) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert len(captured.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "config.json", "weights.safetensors"]


def test_the_file_is_named_on_standard_error_with_json(run, tmp_path, capsys):
    out = str(tmp_path / "out.md")
    assert main(["compare", run("a", [50.0]), "--json", "--out", out]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["groups"][0]["n"] == 1
    assert captured.err == f"{out}\n"


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
