import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from offramp import data, export
from offramp.errors import OfframpError, UsageError
from offramp.export import Stages
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Policy
from offramp.storage import weights_hash

NETWORKS = [("msdnet", True), ("ranet", False), ("by hand", True)]


def logits_by_files(stages: Stages) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function from images to logits: the files run one after the other, connected as `stages.json` says."""
    running = {
        one.file: onnxruntime.InferenceSession(stages.folder / one.file, providers=["CPUExecutionProvider"])
        for one in (*stages.stages, *stages.exits)
    }

    def run(images: np.ndarray) -> list[np.ndarray]:
        given, logits = {"images": images}, []
        for stage, leaves in zip(stages.stages, stages.exits, strict=True):
            outputs = running[stage.file].run(list(stage.outputs), {name: given[name] for name in stage.inputs})
            given = dict(zip(stage.outputs, outputs, strict=True))
            logits += running[leaves.file].run([leaves.output], {leaves.input: given[stage.outputs[leaves.reads]]})
        return logits

    return run


@pytest.fixture
def written(trained, tmp_path):
    """A function from a trained network's name to its folder."""

    def write(name="msdnet", damping=True, **more) -> Stages:
        one = trained(name, damping)
        return export.stages(one.network, tmp_path / "stages", made=one.parts, **more)

    return write


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
def test_files_run_in_turn_give_the_logits_of_the_network(name, damping, trained, written) -> None:
    one, run = trained(name, damping), logits_by_files(written(name, damping))
    for rows in (0, 1, 2, 33):
        wanted = one.logits_KSC[:, :rows].numpy()
        for found, expected in zip(run(one.images_SCHW[:rows].numpy()), wanted, strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(wanted).max(initial=1.0))


def test_what_is_read_back_is_what_was_written(trained, written) -> None:
    network = trained().network
    inputs = data.digits().test.inputs()
    policy = Policy((0.5, 0.6, EVERYBODY), network=weights_hash(network.state_dict()), found={"procedure": "by hand"})
    stages = written(policy=policy, inputs=inputs)
    assert Stages.load(stages.folder).policy["thresholds"] == [0.5, 0.6, EVERYBODY]
    assert json.loads(json.dumps(Stages.load(stages.folder).input)) == json.loads(json.dumps(stages.input))
    assert stages.classes == inputs.class_names
    assert stages.weights == policy.network
    assert (stages.num_classes, stages.damping, stages.image_shape) == (10, True, (1, 16, 16))


def test_a_folder_without_policy_and_input_is_read_back_as_it_was(written) -> None:
    stages = written()
    assert Stages.load(stages.folder) == stages


def test_a_carry_that_a_stage_does_not_use_is_not_asked_for(written) -> None:
    third = written("by hand", True).stages[2]
    assert third.inputs == ("carry_2_1",)


def test_files_hold_no_path_of_the_machine_and_equal_networks_give_equal_files(trained, written) -> None:
    stages = written("by hand", True)
    first = {path.name: path.read_bytes() for path in stages.folder.iterdir()}
    assert not any(b"site-packages" in content or b".py" in content for content in first.values())
    again = export.parts(trained("by hand", True).network)
    assert again.stages[1].model.SerializeToString(deterministic=True) == first["stage-2.onnx"]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda content: content.pop("stages"), "missing required field stages"),
        (lambda content: content.update(format=99), "newer offramp"),
        (lambda content: content["stages"][1].update(inputs=["carry_9_9"]), "stage 2 wants carry_9_9"),
        (lambda content: content["exits"][1].update(reads=7), "exit 2 reads output 7 of 2"),
        (lambda content: content["exits"][1].update(file="exit-9.onnx"), "lacks exit-9.onnx"),
        (lambda content: content["exits"][1].update(file="../exit-1.onnx"), "no name of"),
        (lambda content: content["exits"].pop(), "3 stages and 2 exits"),
    ],
)
def test_a_damaged_folder_is_refused(break_it, says, written) -> None:
    stages = written()
    content = json.loads((stages.folder / "stages.json").read_text())
    break_it(content)
    (stages.folder / "stages.json").write_text(json.dumps(content))
    with pytest.raises((UsageError, OfframpError), match=says):
        Stages.load(stages.folder)


def test_files_of_more_exits_than_there_are_now_are_removed_and_no_others(trained, written) -> None:
    folder = written().folder
    own = {path.name for path in folder.iterdir()}
    old = ["stage-4.onnx", "exit-12.onnx", "stage-1.pt2", "exit-4.aoti.pt2"]
    others = ["stage-4.onnx.bak", "stage-x.onnx", "exit-4.txt", "my-stage-4.onnx"]
    for name in (*old, *others):
        (folder / name).write_text("of before")
    written()
    assert {path.name for path in folder.iterdir()} == own | set(others)


def test_a_folder_that_is_none_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"has no stages\.json"):
        Stages.load(tmp_path)


@pytest.mark.parametrize(
    ("policy", "says"),
    [(Policy((0.5, EVERYBODY)), "for 2 exits"), (Policy((0.5, 0.5, EVERYBODY), network="0" * 64), "found for the")],
)
def test_a_policy_for_another_network_is_refused_before_anything_is_written(policy, says, written, tmp_path) -> None:
    with pytest.raises(UsageError, match=says):
        written(policy=policy)
    assert not list(Path(tmp_path).iterdir())


def test_a_network_that_does_not_say_its_images_is_refused(tmp_path) -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    network = EarlyExitNet([nn.Identity()], [head])
    with pytest.raises(UsageError, match="pass image_shape"):
        export.stages(network, tmp_path / "stages")
    stages = export.stages(network, tmp_path / "stages", image_shape=(1, 4, 4))
    images_BCHW = torch.rand(3, 1, 4, 4)
    (logits,) = logits_by_files(stages)(images_BCHW.numpy())
    np.testing.assert_allclose(logits, network(images_BCHW)[0].detach().numpy(), rtol=0, atol=1e-6)
