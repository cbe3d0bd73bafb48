import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from offramp import data, export
from offramp.backbones import attach
from offramp.backbones.attached.zoo import named_model
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import Engine
from offramp.runtime.agreement import FLOAT32, agreement
from offramp.runtime.rows import Answers
from offramp.storage import weights_hash

NETWORKS = [("msdnet", True), ("ranet", False), ("by hand", True)]
MEASURES = {
    "softmax": Measure(),
    "renormalised": Measure(renormalise=True, temperatures=(0.7, 1.0, 1.6)),
    "margin": Measure("margin", temperatures=(1.3, 1.0, 0.8)),
    "entropy": Measure("entropy"),
    "patience": Measure("patience"),
}


def halving(logits_KSC: Tensor, measure: Measure) -> Policy:
    """About half of those that reach an exit leave there; each threshold lies in the widest gap near the middle."""
    if measure.name == "patience":
        return Policy((NOBODY, 1.0, EVERYBODY), measure)
    confidence_KS, _ = measure.over(logits_KSC, 10)
    here_S, thresholds = torch.ones(logits_KSC.shape[1], dtype=torch.bool), []
    for confidence_S in confidence_KS[:-1]:
        values = confidence_S[here_S].sort().values
        middle = values[len(values) * 9 // 20 : len(values) * 11 // 20 + 2].double()  # two may say the same
        widest = int(middle.diff().argmax())
        thresholds.append(float(middle[widest : widest + 2].mean()))
        here_S &= ~(confidence_S >= thresholds[-1])
    return Policy((*thresholds, EVERYBODY), measure)


def session(path: Path, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that inputs with defaults are no constants, which is what they are for
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers(running: onnxruntime.InferenceSession, images_SCHW: Tensor, batch: int, **more: np.ndarray) -> Answers:
    """Of all images, batch by batch."""
    batches = [running.run(None, {"images": images.numpy(), **more}) for images in images_SCHW.split(batch)]
    labels, exits, confidence, _ = (torch.from_numpy(np.concatenate(column)) for column in zip(*batches, strict=True))
    return Answers(labels, exits, confidence)


@pytest.fixture
def write(trained, tmp_path) -> Callable[..., Path]:
    """A function from a trained network and a policy to its file."""

    def written(one, policy: Policy, **more) -> Path:
        return export.onnx_file(one.network, policy, tmp_path / "network.onnx", made=one.parts, **more)

    return written


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_it_answers_as_the_policy_and_the_engine_do(name, damping, measure, trained, write) -> None:
    one = trained(name, damping)
    policy = halving(one.logits_KSC, measure)
    running = session(write(one, policy))
    of_engine = Engine(one.network, policy)(one.images_SCHW)
    for batch in (1, 7, 32):
        found = answers(running, one.images_SCHW, batch)
        assert len(found.exits_B.unique()) >= 2
        agrees = agreement(found, one.logits_KSC, policy, 10, FLOAT32)
        assert (agrees.wrong, agrees.images) == (0, len(one.images_SCHW))
        assert agrees.flips <= 1
        other_B = (found.exits_B != of_engine.exits_B) | (found.labels_B != of_engine.labels_B)
        assert int(other_B.sum()) <= agrees.flips + agreement(of_engine, one.logits_KSC, policy, 10, FLOAT32).flips


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
def test_probabilities_are_those_of_the_exit_taken(name, damping, trained, write) -> None:
    one = trained(name, damping)
    measure = Measure(temperatures=(0.7, 1.0, 1.6))
    policy = halving(one.logits_KSC, measure)
    label, exits, confidence, probabilities = session(write(one, policy)).run(None, {"images": one.images_SCHW.numpy()})
    for k in range(3):
        wanted = measure.log_probs(k, one.logits_KSC[k], 10).exp().numpy()[exits == k]
        np.testing.assert_allclose(probabilities[exits == k], wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), label)
    np.testing.assert_allclose(probabilities.max(1), confidence, rtol=0, atol=1e-6)


def test_no_images_give_no_answers(trained, write) -> None:
    one = trained("ranet", False)
    running = session(write(one, halving(one.logits_KSC, Measure())))
    shapes = [out.shape for out in running.run(None, {"images": one.images_SCHW[:0].numpy()})]
    assert shapes == [(0,), (0,), (0,), (0, 10)]


def kernels(path: Path, folder: Path, images_BCHW: Tensor, **more: np.ndarray) -> set[str]:
    """Names of the nodes that the runtime's own profile shows."""
    running = session(path, folder / "profile")
    running.run(None, {"images": images_BCHW.numpy(), **more})
    events = json.loads(Path(running.end_profiling()).read_text())
    return {event["name"] for event in events if event.get("cat") == "Node"}


def parts_run(names: set[str]) -> set[str]:
    return {name.split("/")[0] for name in names if name.startswith(("stage_", "exit_"))}


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
def test_no_kernel_of_a_stage_that_nobody_needs_runs(name, damping, trained, write, tmp_path) -> None:
    one = trained(name, damping)
    path = write(one, Policy((EVERYBODY, EVERYBODY, EVERYBODY)))
    images = one.images_SCHW[:5]
    assert parts_run(kernels(path, tmp_path, images)) == {"stage_1", "exit_1"}
    second = np.array([NOBODY, EVERYBODY], np.float32)
    assert parts_run(kernels(path, tmp_path, images, thresholds=second)) == {"stage_1", "exit_1", "stage_2", "exit_2"}
    nowhere = np.array([NOBODY, NOBODY], np.float32)
    assert "stage_3" in parts_run(kernels(path, tmp_path, images, thresholds=nowhere))


def test_only_the_rows_that_go_on_are_run(trained, write, tmp_path) -> None:
    """Where 3 of 8 go on, the kernels of the next stage see 3 rows."""
    one = trained()
    measure = Measure()
    confidence_S = measure.over(one.logits_KSC, 10)[0][0]
    order_S = confidence_S.argsort(descending=True)
    chosen = torch.cat([order_S[:5], order_S[-3:]])[torch.tensor([0, 5, 1, 6, 2, 7, 3, 4])]
    policy = Policy((float(confidence_S[order_S[4]]) - 1e-3, EVERYBODY, EVERYBODY), measure)
    running = session(write(one, policy), tmp_path / "profile")
    running.run(None, {"images": one.images_SCHW[chosen].numpy()})
    events = json.loads(Path(running.end_profiling()).read_text())
    rows: dict[str, set[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["args"]["op_name"] in ("Conv", "FusedConv"):
            (shape,) = event["args"]["output_type_shape"][0].values()
            rows.setdefault(event["name"].split("/")[0], set()).add(shape[0])
    assert rows == {"stage_1": {8}, "exit_1": {8}, "stage_2": {3}, "exit_2": {3}}


def test_thresholds_can_be_given(trained, write) -> None:
    one = trained()
    policy, other = halving(one.logits_KSC, Measure()), Policy((0.9, 0.6, EVERYBODY))
    running = session(write(one, policy))
    given = np.array(other.thresholds[:-1], np.float32)
    found = answers(running, one.images_SCHW, 32, thresholds=given)
    assert agreement(found, one.logits_KSC, other, 10, FLOAT32).wrong == 0
    assert not torch.equal(found.exits_B, answers(running, one.images_SCHW, 32).exits_B)


def test_a_closed_exit_runs_no_head_until_it_is_opened(trained, write, tmp_path) -> None:
    one = trained()
    policy = Policy((NOBODY, 0.6, EVERYBODY))
    path = write(one, policy)
    assert agreement(answers(session(path), one.images_SCHW, 32), one.logits_KSC, policy, 10, FLOAT32).wrong == 0
    images = one.images_SCHW[:4]
    assert not any(name.startswith("exit_1/open/") for name in kernels(path, tmp_path, images))
    opened = Policy((0.7, 0.6, EVERYBODY))
    given = np.array(opened.thresholds[:-1], np.float32)
    assert any(name.startswith("exit_1/open/") for name in kernels(path, tmp_path, images, thresholds=given))
    found = answers(session(path), one.images_SCHW, 32, thresholds=given)
    assert agreement(found, one.logits_KSC, opened, 10, FLOAT32).wrong == 0


def test_images_whose_logits_are_not_numbers_go_to_the_last_exit(trained, write) -> None:
    one = trained()
    images = one.images_SCHW[:4].clone()
    images[2] = torch.nan
    for measure in MEASURES.values():
        thresholds = (0.0, 0.0) if measure.name == "patience" else (-10.0, -10.0)
        policy = Policy((*thresholds, EVERYBODY), measure)
        _, exits, confidence, _ = session(write(one, policy)).run(None, {"images": images.numpy()})
        assert exits.tolist() == [0, 0, 2, 0]
        assert np.isnan(confidence[2])


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
def test_the_file_is_sound_and_no_larger_than_the_weights(name, damping, trained, write) -> None:
    one = trained(name, damping)
    path = write(one, halving(one.logits_KSC, Measure()))
    onnx.checker.check_model(path, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, check_type=True)
    found = {value.name: value.type.tensor_type for value in inferred.graph.output}
    assert [len(found[name].shape.dim) for name in ("label", "exit", "confidence", "probabilities")] == [1, 1, 1, 2]
    weights = sum(tensor.nbytes for tensor in one.network.state_dict().values())
    assert path.stat().st_size <= max(1.1 * weights, weights + 2**20)
    assert {opset.domain for opset in inferred.opset_import} == {""}


def test_weights_stand_in_it_once(tmp_path) -> None:
    """Of a network of 1.3 MB next to everything is one matrix, which two stages share."""
    wide = nn.Linear(576, 576)
    network = EarlyExitNet(
        [nn.Sequential(nn.Flatten(), wide), wide], [nn.Linear(576, 3), nn.Linear(576, 3)], image_shape=(1, 24, 24)
    )
    path = export.onnx_file(network, Policy((0.5, EVERYBODY)), tmp_path / "network.onnx")
    weights = sum(parameter.nbytes for parameter in network.parameters())
    assert weights < path.stat().st_size < 1.1 * weights


def test_it_says_what_it_is(trained, write, monkeypatch) -> None:
    one = trained()
    inputs = data.digits().test.inputs()
    weights = weights_hash(one.network.state_dict())
    policy = Policy((0.5, 0.6, EVERYBODY), network=weights, found={"procedure": "by hand"})
    monkeypatch.setattr(one.network, "origin", {"model": "somebody's", "licence": "apache-2.0"})
    texts = session(write(one, policy, inputs=inputs)).get_modelmeta().custom_metadata_map
    assert json.loads(texts["classes"]) == list(map(str, range(10)))
    assert json.loads(texts["policy"])["found"] == {"procedure": "by hand"}
    assert texts["weights"] == weights
    assert texts["licence"] == "apache-2.0"
    assert json.loads(texts["input"])["mean"] == list(inputs.mean)
    assert "float32 [B, 1, 16, 16]" in texts["how_to_call"]


CONVOLUTIONS = [f"torchvision/{name}" for name in ("resnet18", "mobilenet_v3_small", "densenet121")]
TRANSFORMER = ("timm/vit_tiny_patch16_224", {"image_size": 64, "depth": 3, "embed_dim": 64, "num_heads": 2})


@pytest.mark.parametrize(
    ("name", "arguments", "damping"),
    [
        (*TRANSFORMER, True),
        *(
            pytest.param(name, {}, damping, marks=pytest.mark.slow)
            for name in CONVOLUTIONS
            for damping in (False, True)
        ),
    ],
)
def test_a_network_attached_to_a_known_one_answers_as_its_policy_does(name, arguments, damping, tmp_path) -> None:
    model = named_model(name, num_classes=10, **arguments)
    network = attach(model, damping=damping, image_shape=(3, 64, 64)).eval()
    images = torch.randn(40, 3, 64, 64)
    with torch.no_grad():
        logits_KBC = network(images)
    policy = halving(logits_KBC, Measure())
    path = export.onnx_file(network, policy, tmp_path / "network.onnx")
    for batch in (1, 7, 32):
        assert agreement(answers(session(path), images, batch), logits_KBC, policy, 10, FLOAT32).wrong == 0
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert path.stat().st_size <= 1.1 * weights
    everybody = np.full(network.num_exits - 1, EVERYBODY, np.float32)
    assert parts_run(kernels(path, tmp_path, images[:5], thresholds=everybody)) == {"stage_1", "exit_1"}
