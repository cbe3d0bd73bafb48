"""A small run judged from end to end: smaller networks trained, stopped and continued, timed, put on a page."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.results import made_up

from offramp import shipped
from offramp.cli import main
from offramp.commands import VerdictOptions, Watch, verdict
from offramp.commands.bench import timing as bench_timing
from offramp.commands.verdict import measuring
from offramp.errors import OfframpError, UsageError
from offramp.files import OWNER, RunFolder, load
from offramp.json_files import read, write
from offramp.network import EarlyExitNet
from offramp.policy import NOBODY, Policy
from offramp.results.verdict.comparison import at_equal_time
from offramp.results.verdict.conclusion import conclude
from offramp.results.verdict.values import Contender, JudgedComparison, Verdict
from offramp.show.verdict.page import verdict_page
from offramp.show.verdict.table import remarks
from offramp.storage import load_tensors, save_tensors
from offramp.training import StoppedError
from offramp.training.loop import Loop

QUICK: dict[str, Any] = {"rounds": 5, "seconds": 0.2, "images": 10, "backend": "torch"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images to tune on."""
    monkeypatch.setattr(measuring, "TUNED_ON", 32)
    monkeypatch.setattr("offramp.runtime.tune.STREAMED", (32, 32))


# -- the smaller networks ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_stopped_and_started_again_it_ends_the_same(run: Path, tmp_path: Path, monkeypatch, capsys, prefixes) -> None:
    """Ctrl-C in the second training: the first is not repeated, the second goes on, and its weights are as if never
    stopped; then everything is measured.
    """
    steps = 0
    one_step = Loop._one_step

    def interrupted(self: Loop, *args: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:  # of 6 in each training
            os.kill(os.getpid(), signal.SIGINT)
        one_step(self, *args)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_one_step", interrupted)
        with pytest.raises(StoppedError):
            verdict(VerdictOptions(run, **QUICK), watch=Watch(note=said.append))
    assert said[0].startswith("Training 2 smaller networks (up to exit 1, 2) into ")
    first, second = (RunFolder(run / "verdict" / name) for name in ("prefix-1", "prefix-2"))
    assert first.weights.is_file()
    assert not second.weights.exists()
    before = first.weights.stat().st_mtime_ns
    capsys.readouterr()
    contenders: list[Contender] = []

    def kept(*args: Any) -> tuple[list[Contender], int]:
        measured, wrong = timed(*args)
        contenders.extend(measured)
        return measured, wrong

    timed = measuring.timed
    monkeypatch.setattr(measuring, "timed", kept)
    found = verdict(VerdictOptions(run, **QUICK), watch=Watch(note=said.append))
    assert "Training 1 smaller network (up to exit 2) into " in said[1]
    assert "Continuing after 1 epochs" in capsys.readouterr().err
    assert first.weights.stat().st_mtime_ns == before
    prefixes(run, tmp_path / "calm").train(2, 0)
    assert second.weights.read_bytes() == (tmp_path / "calm" / "prefix-2" / "weights.safetensors").read_bytes()
    check(found, contenders, run, prefixes)


def check(found: Verdict, contenders: list[Contender], run: Path, prefixes) -> None:
    """Everything was measured, and the file and the page say what was found."""
    kinds = [(one.kind, one.exit) for one in found.contenders if one.kind != "engine"]
    assert kinds == [("cut", 1), ("cut", 2), ("alone", 1), ("alone", 2)]
    assert found.wrong == 0
    assert found.missing == ()
    assert found.contenders == tuple(one.figures() for one in contenders)
    assert all(len(one.ms_R) == 5 and min(one.ms_R) > 0 for one in contenders)
    network, test = load(run), prefixes(run).parts.test
    images_BCHW = torch.cat([batch.images_BCHW for batch in test.batches()])
    with torch.no_grad():
        answers_KS = network(images_BCHW)[..., :10].argmax(-1)
    right_KS = answers_KS == test.labels_S
    for exit in (1, 2):
        (cut,) = (one for one in contenders if (one.kind, one.exit) == ("cut", exit))
        assert torch.equal(cut.right_S.bool(), right_KS[exit - 1])
    values = json.loads((run / "verdict.json").read_text())
    assert values == json.loads(json.dumps(found.to_json()))
    page = (run / "verdict.html").read_text()
    assert found.headline.partition(": ")[2][1:] in page.replace("&#39;", "'")
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    # Contender 1 is compared as the pure functions would.
    rivals = [one for one in contenders if one.kind != "engine"]
    comparisons = at_equal_time([one for one in contenders if one.kind == "engine"], rivals)
    assert found.comparisons == tuple(JudgedComparison(**vars(one), answer=one.answer_for(0)) for one in comparisons)
    concluded = conclude(comparisons, rivals, found.data.images)
    assert (found.answer, found.headline, found.details) == tuple(vars(concluded).values())


@pytest.mark.usefixtures("undrawn")
def test_without_training_it_says_what_is_missing(run: Path, monkeypatch, prefixes) -> None:
    """And which forms some networks could not be run in: here all smaller ones, in any but the first."""

    def refuse(network: EarlyExitNet, *_: Any) -> None:
        raise UsageError("It cannot be exported.")

    monkeypatch.setattr(bench_timing, "make_program", refuse)
    prefixes(run).train(1, 0)
    Policy((0.3, -1e8)).save(run / "policy.json")
    found = verdict(VerdictOptions(run, no_train=True, **{**QUICK, "backend": "auto"}))
    assert found.missing == (2,)
    assert "early exits, policy.json" in {one.name for one in found.contenders}
    assert found.answer != "yes"
    page = (run / "verdict.html").read_text()
    assert "Missing: the smaller networks up to exit 2, trained alone." in page
    assert found.left_out
    assert all("exit 1 trained alone (It cannot be exported)." in said for said in found.left_out)
    assert page.count("(It cannot be exported).") == len(found.left_out)
    assert json.loads((run / "verdict.json").read_text())["left_out"] == list(found.left_out)
    assert not (run / "verdict" / "prefix-2").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_form_that_the_engine_cannot_be_run_in_is_named(run: Path, monkeypatch, capsys) -> None:
    """onnxruntime loads no file: the verdict goes on without it, and the page and the terminal say so."""

    def refuse(*_: object) -> None:
        raise OfframpError("It cannot load stage-1.onnx.")

    monkeypatch.setattr("offramp.runtime.library.LibraryProgram._check", refuse)
    monkeypatch.setattr("offramp.runtime.backends._alive", {})  # which may have one that another test loaded
    found = verdict(VerdictOptions(run, no_train=True, **{**QUICK, "backend": "auto"}))
    assert found.left_out == tuple(
        f"Nothing was run in the form {name}, float32: It cannot load stage-1.onnx."
        for name in ("onnxruntime", "openvino")
    )
    for said in found.left_out:
        assert said in (run / "verdict.html").read_text()
        assert said in remarks(found)


def test_several_seeds_count_by_their_mean(run: Path, prefixes) -> None:
    made = prefixes(run)
    trained = [made.train(1, seed) for seed in (0, 2)]
    assert sorted(folder.name for folder in (run / "verdict").iterdir()) == ["prefix-1", "prefix-1-seed-2"]
    (alone,) = measuring.trained_alone(made, [0, 2], None)
    assert measuring.trained_alone(made, [0, 2, 3], None) == []
    images_BCHW = torch.cat([batch.images_BCHW for batch in made.parts.test.batches()])
    with torch.no_grad():
        right_2S = torch.cat([network(images_BCHW) for network in trained]).argmax(-1) == made.parts.test.labels_S
    assert torch.equal(alone.right(alone.tests), right_2S.double().mean(0))
    assert 0.5 in alone.right(alone.tests)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rounds": 4}, "rounds must be a whole number of at least 5, not 4"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch-size must be a whole number of at least 1"),
        ({"images": 0}, "images must be a whole number of at least 1"),
        ({"seconds": 0}, "seconds must be a number above 0"),
        ({"least_gain": -1.0}, "least-gain must be a number of at least 0"),
        ({"exits": [1, 3]}, "exits are numbered from 1 to 2; there is no 3"),
        ({"policy": Policy((NOBODY, NOBODY, -1e8))}, "3 exits"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(settings: dict[str, Any], says: str, run: Path) -> None:
    with pytest.raises(UsageError, match=says):
        verdict(VerdictOptions(run, **settings))
    assert not (run / "verdict").exists()


def rewrite(run: Path, config: dict[str, Any]) -> None:
    """Another configuration, and the weights as if it had been that from the start."""
    (run / "config.json").write_text(json.dumps(config))
    folder = RunFolder(run)
    tensors, metadata = load_tensors(folder.weights)
    save_tensors(folder.weights, tensors, {**metadata, OWNER: folder.identity()})


def test_runs_of_which_nothing_can_be_said(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["holdout"] = 0
    config["images"] = {}
    rewrite(run, config)
    with pytest.raises(UsageError, match="with holdout=0 there are none"):
        verdict(VerdictOptions(run))


def test_a_shipped_network_that_saw_more_than_its_data_is_compared_with_itself_alone(tmp_path: Path) -> None:
    shipped.copy("fashion-mnist", tmp_path / "clothes")
    with pytest.raises(UsageError, match="trained on 55,000 images, of which garments has a part"):
        verdict(VerdictOptions(tmp_path / "clothes"))
    assert not (tmp_path / "clothes" / "verdict").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_run_with_settings_that_are_gone_is_judged_without_training(run: Path, prefixes) -> None:
    prefixes(run).train(1, 0)
    config = json.loads((run / "config.json").read_text())
    config["training"]["warp"] = 9
    rewrite(run, config)
    for train in (True, False):
        with pytest.raises(UsageError, match=r"this one lacks \(warp\), so .*: give --no-train, and with --runs a f"):
            verdict(VerdictOptions(run, no_train=not train, **QUICK))
    assert not (run / "verdict" / "prefix-2").exists()
    assert verdict(VerdictOptions(run, no_train=True, runs=run / "none", **QUICK)).missing == (1, 2)


@pytest.mark.parametrize("looks", ["offramp.commands.open_run.cost", "offramp.training.prefixes.check_skippable"])
def test_a_network_that_cannot_be_is_refused_before_anything_is_trained(
    run: Path, looks, monkeypatch, prefixes
) -> None:
    def refuse(network: EarlyExitNet, image_shape: tuple[int, int, int]) -> None:
        assert image_shape == prefixes(run).parts.test.image_shape
        raise UsageError("It cannot be.")

    monkeypatch.setattr(looks, refuse)
    with pytest.raises(UsageError, match="It cannot be"):
        verdict(VerdictOptions(run))
    assert not (run / "verdict").exists()


def test_another_run_in_the_place_of_a_smaller_network(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "prefix-1").symlink_to(run)
    for train in (True, False):
        with pytest.raises(UsageError, match="is not the run's network up to exit 1"):
            verdict(VerdictOptions(run, runs=tmp_path / "runs", no_train=not train))


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "title"), [("yes", "Yes"), ("no", "No"), ("open", "Not resolved")])
def test_a_page_of_each_kind(answer: str, title: str, tmp_path: Path) -> None:
    made = made_up.verdict(answer)
    assert made.answer == answer
    write(tmp_path / "verdict.json", made.to_json())
    assert read(tmp_path / "verdict.json", Verdict) == made
    page = verdict_page(made, "<my run>")
    assert page == verdict_page(made, "<my run>")
    assert f"<title>Is early exit worth it? {title}</title>" in page
    assert "&lt;my run&gt;" in page
    assert "runs straight on" in page
    assert "So they were trained." in page
    assert 'class="note warning">2 timed answers differ' in page
    assert page.count("<svg") == 2


# -- the command -------------------------------------------------------------------------------------------------------

WORDS = ["--no-train", "--images", "10", "--rounds", "5", "--seconds", "0.2", "--batch-size", "2", "--backend", "torch"]


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_judged_and_the_table_says_what_the_file_says(make_trained, capsys):
    run = make_trained()
    assert main(["verdict", run, *WORDS]) == 0
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
