"""The example of docs/export.md needs onnxruntime and numpy alone, and in JavaScript the file answers the same."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from offramp import data, export
from offramp.policy import EVERYBODY, Measure, Policy

GUIDE = Path(__file__).parents[2] / "docs" / "export.md"
BLOCKED = """
import sys
for name in ("torch", "torchvision", "offramp", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it fails
exec(compile(open("answer.py").read(), "answer.py", "exec"))
"""


@pytest.fixture
def written(trained, tmp_path) -> Path:
    """The file of a trained network that takes pixels, where the guide has it."""
    path = tmp_path / "runs" / "digits" / "export" / "network.onnx"
    one = trained("by hand", True)
    inputs = data.digits().test.inputs()
    policy = Policy((0.3, 0.3, EVERYBODY))
    return export.onnx_file(one.network, policy, path, inputs=inputs, preprocess=True, made=one.parts)


def test_ten_lines_with_onnxruntime_and_numpy_alone(written, tmp_path) -> None:
    (example,) = re.findall(r"```python\n# answer\.py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 10
    (tmp_path / "answer.py").write_text(example)
    command = [sys.executable, "-W", "error", "-c", BLOCKED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    photos = np.random.default_rng(0).integers(0, 256, (4, 480, 640, 3), dtype=np.uint8)
    labels, exits, *_ = onnxruntime.InferenceSession(written).run(None, {"images": photos})
    said = [line.split(",")[0] for line in done.stdout.splitlines()]
    assert said == [f"{label} at exit {exit + 1}" for label, exit in zip(labels, exits, strict=True)]


def test_the_example_would_fail_if_it_used_torch(tmp_path) -> None:
    (tmp_path / "answer.py").write_text("import torch\n")
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in done.stderr


IN_NODE = """
import fs from 'node:fs';
import * as ort from 'onnxruntime-web';

ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';
const asked = JSON.parse(fs.readFileSync('asked.json'));
const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(asked.file)));
const answers = [];
for (const batch of asked.batches) {
  const values = asked.type === 'uint8' ? Uint8Array.from(batch.values) : Float32Array.from(batch.values);
  const out = await session.run({ images: new ort.Tensor(asked.type, values, batch.shape) });
  answers.push(Object.fromEntries(Object.entries(out).map(([name, { data }]) => [name, Array.from(data, Number)])));
}
fs.writeFileSync('answers.json', JSON.stringify(answers));
"""


@pytest.fixture(scope="module")
def in_node(tmp_path_factory) -> Path:
    """A folder with onnxruntime-web."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node and npm here")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-web@^1.20"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch onnxruntime-web: {done.stderr.splitlines()[-1:]}")
    (folder / "run.mjs").write_text(IN_NODE)
    return folder


def asked_of_node(folder: Path, path: Path, batches: list[np.ndarray]) -> list[dict[str, list[float]]]:
    asked = {"file": str(path), "type": str(batches[0].dtype)}
    asked["batches"] = [{"shape": batch.shape, "values": batch.ravel().tolist()} for batch in batches]
    (folder / "asked.json").write_text(json.dumps(asked))
    subprocess.run(["node", "run.mjs"], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["softmax", "margin", "entropy", "patience"])
@pytest.mark.parametrize("name", ["msdnet", "ranet"])
def test_the_file_gives_the_same_answers_in_javascript(name, measure, trained, in_node, tmp_path) -> None:
    one = trained(name, name == "msdnet")
    thresholds = {"softmax": 0.8, "margin": 0.6, "entropy": -1.2, "patience": 1.0}
    policy = Policy((thresholds[measure],) * 2 + (EVERYBODY,), Measure(measure))
    path = export.onnx_file(one.network, policy, tmp_path / "network.onnx", made=one.parts)
    images = one.images_SCHW[:48].numpy()
    batches = [images[:1], images[1:8], images[8:40], images[:0]]
    running = onnxruntime.InferenceSession(path)
    exits = set()
    for batch, found in zip(batches, asked_of_node(in_node, path, batches), strict=True):
        label, exit, confidence, probabilities = running.run(None, {"images": batch})
        assert found["label"] == label.tolist()
        assert found["exit"] == exit.tolist()
        np.testing.assert_allclose(found["confidence"], confidence, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["probabilities"], probabilities.ravel(), rtol=0, atol=1e-4)
        exits |= {*found["exit"]}
    assert len(exits) >= 2


@pytest.mark.slow
def test_the_file_takes_pixels_in_javascript(written, in_node) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    (found,) = asked_of_node(in_node, written, [pixels])
    label, exit, confidence, _ = onnxruntime.InferenceSession(written).run(None, {"images": pixels})
    assert (found["label"], found["exit"]) == (label.tolist(), exit.tolist())
    np.testing.assert_allclose(found["confidence"], confidence, rtol=0, atol=1e-4)
