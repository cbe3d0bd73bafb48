import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from offramp import data
from offramp.cli import main
from offramp.commands import ExportOptions
from offramp.commands.export import Exported, export
from offramp.export import Stages, one_file, stage_files
from offramp.export import parts as parts_of
from offramp.network import EarlyExitNet, builder
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine
from offramp.storage import save_tensors, weights_hash


def test_what_is_written_is_said_and_lies_in_the_runs_folder(make_run, capsys):
    run = make_run()
    assert export(ExportOptions(run, to="torch")) == Exported(run / "export" / "torch", None)
    assert Stages.load(run / "export" / "torch").num_exits == 3
    assert capsys.readouterr() == ("", "")


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced() -> dict:
    return {}


@pytest.fixture(autouse=True)
def _traced_once(traced, monkeypatch) -> None:
    """Runs here have the same network; to trace it takes longer than all else."""

    def once(network, image_shape=None):
        key = weights_hash(network.state_dict()), image_shape
        if key not in traced:
            traced[key] = parts_of(network, image_shape)
        return traced[key]

    for module in (one_file, stage_files):
        monkeypatch.setattr(module, "parts", once)


@pytest.fixture
def run(make_trained, tiny) -> str:
    """A run with a policy and without the logs of its training."""
    run = make_trained()
    policy = Policy((0.4, 0.4, EVERYBODY), network=weights_hash(tiny.state_dict()), found={"procedure": "by hand"})
    policy.save(f"{run}/policy.json")
    inputs = data.Inputs(("left", "right", "up"), (1, 4, 4), (0.2,), (0.2,), "central-fit")
    inputs.save(f"{run}/input.json")
    return run


def test_a_run_becomes_one_onnx_file(run, tiny, parts, capsys):
    assert main(["export", run, "--to", "onnx"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{run}/export/network.onnx\n", "")
    running = onnxruntime.InferenceSession(f"{run}/export/network.onnx")
    images = torch.cat([batch.images_BCHW for batch in parts.test.batches()])[:50]
    label, exits, *_ = running.run(None, {"images": images.numpy()})
    of_engine = Engine(tiny, Policy.load(f"{run}/policy.json"))(images)
    assert (label.tolist(), exits.tolist()) == (of_engine.labels_B.tolist(), of_engine.exits_B.tolist())
    texts = running.get_modelmeta().custom_metadata_map
    assert json.loads(texts["classes"]) == ["left", "right", "up"]
    assert json.loads(texts["policy"])["found"] == {"procedure": "by hand"}


def test_the_file_takes_pixels_on_request_and_another_policy(run, tmp_path, capsys):
    Policy((EVERYBODY, EVERYBODY, EVERYBODY)).save(tmp_path / "all.json")
    out = tmp_path / "pixels.onnx"
    words = ["--policy", str(tmp_path / "all.json"), "--preprocess", "--out", str(out)]
    assert main(["export", run, "--to", "onnx", *words]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    pixels = np.zeros((2, 30, 20, 3), np.uint8)
    _, exits, *_ = onnxruntime.InferenceSession(out).run(None, {"images": pixels})
    assert exits.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("words", "where", "ending"),
    [(["onnx", "--stages"], "stages", "onnx"), (["torch"], "torch", "pt2")],
    ids=["onnx", "torch"],
)
def test_a_run_becomes_stages(words, where, ending, run, capsys):
    assert main(["export", run, "--to", *words]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{run}/export/{where}\n", "")
    stages = Stages.load(f"{run}/export/{where}")
    assert [file.file for file in stages.exits] == [f"exit-{k}.{ending}" for k in (1, 2, 3)]
    assert stages.policy["thresholds"] == [0.4, 0.4, EVERYBODY]
    assert stages.classes == ("left", "right", "up")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "onxx"], "to 'onxx' is unknown. Did you mean onnx? Known: onnx, torch."),
        (["--to", "onnx", "--compiled"], "--compiled is for --to torch"),
        (["--to", "torch", "--stages"], "--stages is for --to onnx"),
        (["--to", "onnx", "--stages", "--preprocess"], "--preprocess is for the one ONNX file"),
        (["--to", "onnx", "--policy", "nowhere.json"], "There is no file nowhere.json"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_in_one_line(words, says, run, capsys):
    assert main(["export", run, *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not Path(run, "export").exists()


def test_a_run_without_a_policy_is_told_how_to_get_one(make_trained, capsys):
    run = make_trained()
    assert main(["export", run, "--to", "onnx"]) == 2
    assert f"{run} has no policy.json" in (said := capsys.readouterr().err)
    assert f"`offramp policy {run}`" in said


def test_a_policy_for_other_weights_is_refused(run, capsys):
    Policy((0.4, 0.4, EVERYBODY), network="0" * 64).save(f"{run}/policy.json")
    assert main(["export", run, "--to", "onnx"]) == 2
    assert "found for the network with weights 000000000000" in capsys.readouterr().err
    assert not Path(run, "export").exists()


@builder
def any_images() -> EarlyExitNet:
    """A network that does not say which images it is for."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))
    return EarlyExitNet([nn.Identity()], [head], num_classes=3)


@pytest.mark.parametrize("known", ["by its inputs", "by its data", "by nobody"])
def test_where_the_network_does_not_say_which_images_it_is_for_the_run_does(known, make_trained, capsys):
    run = make_trained(network=any_images().spec.to_json(), **({} if known == "by its data" else {"data": None}))
    save_tensors(Path(run, "weights.safetensors"), any_images().state_dict())
    if known == "by its inputs":
        data.Inputs(("left", "right", "up"), (1, 6, 5), (0.2,), (0.2,), "central-fit").save(f"{run}/input.json")
    status = main(["export", run, "--to", "torch"])
    if known == "by nobody":
        assert status == 2
        assert "was trained on data made by hand" in capsys.readouterr().err
    else:
        assert status == 0
        assert Stages.load(f"{run}/export/torch").image_shape == ((1, 6, 5) if known == "by its inputs" else (1, 4, 4))


def test_a_run_whose_network_was_built_by_hand_says_so(make_trained, capsys):
    assert main(["export", make_trained(network=None), "--to", "onnx"]) == 2
    assert "was built by hand" in capsys.readouterr().err
