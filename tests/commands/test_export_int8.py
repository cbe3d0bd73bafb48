import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from offramp.certificate import Promise
from offramp.cli import main
from offramp.commands import ExportOptions, export
from offramp.evaluation import Certificate
from offramp.policy import CERTIFICATE, EVERYBODY, Policy
from offramp.runtime import Engine


@pytest.fixture
def run(make_trained) -> str:
    run = make_trained()
    Policy((0.4, 0.4, EVERYBODY), found={"procedure": "by hand"}).save(f"{run}/policy.json")
    return run


def test_the_int8_file_says_what_it_costs(run, tiny, parts, capsys) -> None:
    assert main(["export", run, "--to", "onnx", "--int8"]) == 0
    captured = capsys.readouterr()
    said, file = captured.out.splitlines()
    assert file == f"{run}/export/network-int8.onnx"
    assert captured.err == f"Calibrating int8 on {parts.val.search.name}, measuring it on {parts.test.name}.\n"
    model = onnx.load(file)
    noted = json.loads({text.key: text.value for text in model.metadata_props}["int8"])
    images_SCHW = torch.cat([batch.images_BCHW for batch in parts.test.batches()])
    targets_S = torch.cat([batch.targets_B for batch in parts.test.batches()])
    label, exit, *_ = onnxruntime.InferenceSession(file).run(None, {"images": images_SCHW.numpy()})
    whole = Engine(tiny, Policy.load(f"{run}/policy.json"))(images_SCHW)
    same_S = (label == whole.labels_B.numpy()) & (exit == whole.exits_B.numpy())
    few = 1.5 / len(targets_S)  # rows run together or in batches round alike, but for ties
    assert noted["same_answer"] == pytest.approx(same_S.mean(), abs=few)
    assert noted["accuracy"] == pytest.approx(100 * np.mean(label == targets_S.numpy()), abs=100 * few)
    assert said.startswith(
        f"int8 on {parts.test.name}, {len(targets_S)} images: {noted['accuracy']:.2f} % right (float32"
    )


def test_a_certificate_does_not_pass_on(run, capsys) -> None:
    certificate = Certificate(Promise(), False, "how", "exact", 299, 299, 0, 0, 9, "x/certify", "c", "w").to_json()
    policy = Policy((0.4, 0.4, EVERYBODY), found={"procedure": "certify", CERTIFICATE: certificate})
    policy.save(f"{run}/policy.json")
    assert main(["export", run, "--to", "onnx", "--int8", "--stages"]) == 0
    captured = capsys.readouterr()
    assert "The certificate is of float32's answers and does not pass on to int8." in captured.err
    folder = captured.out.splitlines()[-1]
    assert folder == f"{run}/export/stages-int8"
    with open(f"{folder}/stages.json") as file:
        described = json.load(file)
    assert described["policy"]["found"] == {"procedure": "certify"}
    assert described["int8"]["images"] > 0


def test_int8_is_for_onnx(run, capsys) -> None:
    assert main(["export", run, "--to", "torch", "--int8"]) == 2
    assert "--int8 is for --to onnx" in capsys.readouterr().err


def test_to_calibrate_data_made_by_hand_are_handed_over(make_trained, parts, capsys) -> None:
    run = make_trained(data=None)
    assert main(["export", run, "--to", "onnx", "--int8", "--stages"]) == 2
    assert "parts=..." in capsys.readouterr().err
    exported = export(ExportOptions(run, to="onnx", int8=True, stages=True), parts=parts)
    assert exported.int8 is not None
    assert exported.int8.data == parts.test.name
