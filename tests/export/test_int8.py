"""Networks trained on the digits, in int8: what it costs is measured here in another way than `compared` does."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from offramp import data
from offramp.errors import UsageError
from offramp.export import Int8, Parts, Stages, compared, onnx_file, parts, quantized, stages, uncertified
from offramp.network import EarlyExitNet
from offramp.policy import CERTIFICATE, EVERYBODY, Policy


@pytest.fixture(scope="module")
def parts_of_data():
    return data.digits(batch_size=64, holdout=200)


@pytest.fixture(scope="module")
def in_int8(trained, parts_of_data):
    """A function to a trained network, and its parts in int8, made once."""
    made: dict[str, Parts] = {}
    images_SCHW = torch.cat([batch.images_BCHW for batch in parts_of_data.val.search.batches()])

    def get(name: str = "msdnet"):
        one = trained(name)
        if name not in made:
            made[name] = quantized(one.network, one.parts, images_SCHW)
        return one, made[name]

    return get


def middling(one) -> Policy:
    """Half of those that come leave at each exit; no threshold is an image's confidence, which rounding may move."""
    confidence_KS, _ = Policy((EVERYBODY,)).measure.over(one.logits_KSC, 10)
    middle = confidence_KS.shape[1] // 2
    return Policy((*(confidence_KS[:-1].sort().values[:, middle : middle + 2].mean(1).tolist()), EVERYBODY))


@pytest.mark.parametrize("name", ["msdnet", "by hand"])
def test_convolutions_are_in_int8_and_logits_are_not(in_int8, name) -> None:
    one, made = in_int8(name)
    assert made.image_shape == one.parts.image_shape
    for part, before in zip((*made.stages, *made.exits), (*one.parts.stages, *one.parts.exits), strict=True):
        assert (part.inputs, part.outputs) == (before.inputs, before.outputs)
        assert [*part.model.graph.input] == [*before.model.graph.input]
        assert [*part.model.graph.output] == [*before.model.graph.output]
        from_int8 = {node.output[0] for node in part.model.graph.node if node.op_type == "DequantizeLinear"}
        for node in part.model.graph.node:
            if node.op_type in ("Conv", "Gemm"):
                assert (node.input[1] in from_int8) == (node.op_type == "Conv")
    assert any(node.op_type == "QuantizeLinear" for node in made.stages[0].model.graph.node)


def test_what_it_costs_is_measured(in_int8, parts_of_data, tmp_path) -> None:
    one, made = in_int8()
    policy = middling(one)
    found = compared(one.network, one.parts, made, policy, parts_of_data.test)
    # The other way: the folder of stages, run with nothing but onnxruntime and numpy, decided row by row.
    folder = stages(one.network, tmp_path / "stages", made=made).folder
    answers = run(folder, one.images_SCHW.numpy(), policy.thresholds)
    before = policy.choose(one.logits_KSC, 10)
    exits_S, labels_S = np.array(answers).T
    same_exit_S = exits_S == before.exits_S.numpy()
    targets_S = torch.cat([batch.targets_B for batch in parts_of_data.test.batches()])
    assert found.images == len(targets_S) == len(answers)
    assert found.data == parts_of_data.test.name
    assert found.accuracy == pytest.approx(100 * (labels_S == targets_S.numpy()).mean())
    assert found.accuracy_float32 == pytest.approx(100 * (before.labels_S == targets_S).double().mean().item())
    assert found.same_exit == pytest.approx(same_exit_S.mean())
    assert found.same_answer == pytest.approx((same_exit_S & (labels_S == before.labels_S.numpy())).mean())
    assert found.exits_float32[-1] == pytest.approx(
        100 * (one.logits_KSC[-1, :, :10].argmax(-1) == targets_S).double().mean().item()
    )
    assert 0.8 < found.same_answer < 1  # it is not the same, and not something else
    assert abs(found.accuracy - found.accuracy_float32) < 5
    text = str(found)
    for words in (
        f"{found.accuracy:.2f} % right",
        f"under softmax with thresholds ({policy.thresholds[0]:g}, ",
        f"{found.same_exit:.1%} leave at the same exit",
        "MB (float32",
    ):
        assert words in text


def run(folder, images_SCHW, thresholds) -> list[tuple[int, int]]:
    """Exit and label of each image, one by one."""
    content = json.loads((folder / "stages.json").read_text())
    opened = {
        one["file"]: onnxruntime.InferenceSession(folder / one["file"])
        for kind in ("stages", "exits")
        for one in content[kind]
    }
    answers = []
    for image_CHW in images_SCHW:
        carry = {"images": image_CHW[None]}
        for k, (stage, head) in enumerate(zip(content["stages"], content["exits"], strict=True)):
            given = {name: carry[name] for name in stage["inputs"]}
            outputs = opened[stage["file"]].run(stage["outputs"], given)
            carry = dict(zip(stage["outputs"], outputs, strict=True))
            (logits_BC,) = opened[head["file"]].run([head["output"]], {head["input"]: outputs[head["reads"]]})
            shares_C = np.exp(logits_BC[0] - logits_BC[0].max())
            shares_C = shares_C / shares_C.sum()
            if shares_C[:10].max() >= thresholds[k]:
                answers.append((k, int(shares_C[:10].argmax())))
                break
    return answers


def test_weights_are_a_quarter(in_int8) -> None:
    one, made = in_int8()

    def weights(parts: Parts) -> int:
        return sum(
            len(tensor.raw_data)
            for part in (*parts.stages, *parts.exits)
            for node in part.model.graph.node
            if node.op_type in ("Conv", "DequantizeLinear")
            for tensor in part.model.graph.initializer
            if tensor.name in node.input and len(tensor.dims) == 4
        )

    assert weights(made) * 4 == weights(one.parts) > 0


def test_the_file_is_smaller_where_weights_are_most_of_it_and_nothing_is_touched(parts_of_data, tmp_path) -> None:
    torch.manual_seed(0)
    stage = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    network = EarlyExitNet([stage], [head], image_shape=(1, 16, 16)).eval()
    made = parts(network)
    before = made.stages[0].model.SerializeToString(deterministic=True)
    images_SCHW = next(iter(parts_of_data.val.search.batches())).images_BCHW
    small = quantized(network, made, images_SCHW)
    assert made.stages[0].model.SerializeToString(deterministic=True) == before
    found = compared(network, made, small, None, parts_of_data.test)
    assert (found.policy, found.accuracy) == (None, found.exits[-1])
    assert " %) by the last exit, 100.0% leave" in str(found)
    assert found.bytes < 0.4 * found.bytes_float32
    files = [
        onnx_file(network, Policy((EVERYBODY,)), tmp_path / f"{one}", made=one_made).stat().st_size
        for one, one_made in (("8", small), ("32", made))
    ]
    assert files[0] < 0.4 * files[1]


def test_the_file_that_skips_in_int8(in_int8, parts_of_data, tmp_path) -> None:
    one, made = in_int8()
    policy = middling(one)
    found = compared(one.network, one.parts, made, policy, parts_of_data.test)
    file = onnx_file(one.network, policy, tmp_path / "int8.onnx", made=made, int8=found)
    texts = {text.key: text.value for text in onnx.load(file).metadata_props}
    assert json.loads(texts["int8"]) == as_json(found)
    assert json.loads(texts["int8"])["policy"]["thresholds"] == json.loads(texts["policy"])["thresholds"]
    session = onnxruntime.InferenceSession(file)
    label, exit = session.run(["label", "exit"], {"images": one.images_SCHW.numpy()})
    before = policy.choose(one.logits_KSC, 10)
    same_S = (exit == before.exits_S.numpy()) & (label == before.labels_S.numpy())
    assert same_S.mean() == pytest.approx(found.same_answer, abs=2 / len(same_S))  # rows run together or alone


def as_json(found: Int8):
    return json.loads(json.dumps(dataclasses.asdict(found)))


def test_a_folder_says_whether_it_is_in_int8(in_int8, parts_of_data, tmp_path) -> None:
    one, made = in_int8("by hand")
    found = compared(one.network, one.parts, made, middling(one), parts_of_data.test)
    folder = stages(one.network, tmp_path, made=made, int8=found).folder
    assert Stages.load(folder).int8 == as_json(found)
    stages(one.network, tmp_path, made=one.parts)
    assert Stages.load(folder).int8 is None


def test_a_certificate_does_not_pass_on() -> None:
    policy = Policy((0.5, EVERYBODY), found={"procedure": "certify", CERTIFICATE: {"risk": 0.01}})
    assert uncertified(policy) == dataclasses.replace(policy, found={"procedure": "certify"})


@pytest.mark.parametrize("shape", [(0, 1, 16, 16), (3, 1, 8, 8)])
def test_images_that_cannot_be_calibrated_with(trained, shape) -> None:
    one = trained("by hand")
    with pytest.raises(UsageError, match=r"must be a few hundred \[S, 1, 16, 16\], not \["):
        quantized(one.network, one.parts, torch.zeros(shape))
