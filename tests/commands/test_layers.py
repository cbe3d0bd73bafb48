"""`offramp layers`."""

import json
from pathlib import Path
from typing import Any

import pytest

from offramp import backbones
from offramp.cli import main, parse
from offramp.commands.train import TrainOptions
from offramp.config import Spec


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["layers", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_lists_the_cuts_that_attach_takes(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "torchvision/resnet18", "--image-size", "32", "--in-channels", "1")
    assert found["image_shape"] == [1, 32, 32]
    cuts = {cut["after"]: cut for cut in found["cuts"]}
    assert cuts["layer2"] | {"operations": 0, "share": 0} == {
        "after": "layer2",
        "operations": 0,
        "share": 0,
        "carry": [[128, 4, 4]],
        "size": 2048,
        "reads": 0,
        "auto": True,
    }
    assert len(cuts["layer2.0.conv1"]["carry"]) == 2
    assert [cut["share"] for cut in found["cuts"]] == sorted(cut["share"] for cut in found["cuts"])
    network = backbones.build(Spec("torchvision/resnet18"), num_classes=4, image_shape=(1, 32, 32))
    assert network.origin is not None
    assert network.origin["at"] == [name for name, cut in cuts.items() if cut["auto"]]


def test_the_table_shows_single_tensors_or_every_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "torchvision/resnet18", "--image-size", "32"]) == 0
    shown = capsys.readouterr().out
    assert "layer2.0.conv1" not in shown
    assert "128 x 4 x 4" in shown
    assert "3 x 32 x 32 images" in shown
    assert main(["layers", "torchvision/resnet18", "--image-size", "32", "--every"]) == 0
    assert " + " in capsys.readouterr().out


def test_the_shape_may_be_given_as_after_network(capsys: pytest.CaptureFixture[str]) -> None:
    options = printed(capsys, "torchvision/resnet18", "--image-size", "32", "--in-channels", "1")
    options["model"] += " image_size=32 in_channels=1"
    assert printed(capsys, "torchvision/resnet18", "image_size=32", "in_channels=1") == options
    assert printed(capsys, "torchvision/resnet18", "image_size=64", "--image-size", "32")["image_shape"] == [3, 32, 32]


def test_a_model_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_layers_model.py").write_text(
        "from torch import nn\n"
        "def make(width=4, in_channels=3):\n"
        "    convs = [nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3)]\n"
        "    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = printed(capsys, "own_layers_model:make", "width=5", "--image-size", "10", "12", "--in-channels", "2")
    assert found["cuts"][0]["carry"] == [[5, 8, 10]]
    assert found["operations"] == 5 * 2 * 9 * 80 + 5 * 80 + 25 * 9 * 48 + 5 * 48 + 5 * 2 + 2
    assert main(["layers", "own_layers_model:make"]) == 2
    assert "does not say which images it is for" in capsys.readouterr().err


def test_what_has_exits_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "offramp.backbones:msdnet"]) == 2
    assert "has exits already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet18"], "Unknown model 'resnet18'. Did you mean torchvision/resnet18 or timm/resnet18?"),
        (["torch:nn"], "model 'torch:nn' is of type module; name a class or a function"),
        (["own_instance:model"], "model 'own_instance:model' is a Sequential already; name a function that returns it"),
        (["own_instance:make"], "or --image-size to a command"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own_instance.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
        "model = make()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["layers", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_backbone_is_another_word_for_network() -> None:
    one = parse(["train", "--out", "x", "--backbone", "timm/resnet18", "at=layer1"])
    other = parse(["train", "--out", "x", "--network", "timm/resnet18", "at=layer1"])
    assert one == other
    assert isinstance(one, TrainOptions)
    assert one.run.network == Spec("timm/resnet18", {"at": "layer1"})
