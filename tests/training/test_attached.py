"""Attached networks, the main use of a frozen trunk: weights of the model, exits trained, features kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import offramp
from offramp import data
from offramp.backbones.attached import attach
from offramp.backbones.foreign import start_from
from offramp.config import TrainConfig
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, PowerSqrt
from offramp.training.features import Features
from offramp.training.trunk import frozen

SHAPE = (3, 32, 32)


def model(num_classes: int = 3, seed: int = 0) -> nn.Module:
    """A ResNet with one block a level; its batch norm has seen something."""
    torch.manual_seed(seed)
    made = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    made(torch.randn(8, *SHAPE))
    return made.eval()


def network(num_classes: int = 3, damping: bool = False, seed: int = 1) -> EarlyExitNet:
    return attach(model(seed=seed), ["layer1", "layer2"], num_classes=num_classes, damping=damping, image_shape=SHAPE)


@pytest.mark.parametrize("damping", [False, True])
def test_the_models_own_file_gives_its_answers_at_the_last_exit(tmp_path: Path, damping: bool) -> None:
    original, net = model(), network(damping=damping).eval()
    torch.save({"state_dict": original.state_dict()}, tmp_path / "weights.pth")
    assert start_from(net, tmp_path / "weights.pth") is not None
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(net(images)[-1, :, :3], original(images))


def test_a_file_of_other_classes_gives_all_but_the_last_layer(tmp_path: Path) -> None:
    torch.save(model(num_classes=5).state_dict(), tmp_path / "weights.pth")
    said = start_from(network(), tmp_path / "weights.pth")
    assert said is not None
    assert "its last layer, for 5 classes there and 3 here, starts fresh" in said


def test_pooled_features_are_kept_and_the_outcome_is_the_same(tmp_path: Path) -> None:
    labels = np.arange(48) % 3
    noise = np.random.default_rng(0).integers(0, 80, (48, *SHAPE))
    pixels = (noise + 60 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    parts = data.arrays(pixels, labels, holdout=8, batch_size=16, flip=True)
    torch.save(model().state_dict(), tmp_path / "weights.pth")
    config = TrainConfig(
        epochs=2, lr=0.01, init=str(tmp_path / "weights.pth"), freeze_trunk=True, augment=False, keep_features="yes"
    )
    kept = offramp.fit(network(damping=True), PowerSqrt(), parts.train, parts.val, config, out=tmp_path / "yes")
    config = dataclasses.replace(config, keep_features="no")
    run = offramp.fit(network(damping=True), PowerSqrt(), parts.train, parts.val, config, out=tmp_path / "no")
    torch.testing.assert_close(kept.state_dict(), run.state_dict(), rtol=1e-3, atol=1e-4)
    before = model().state_dict()
    trunk = {name.split(".", 2)[2]: value for name, value in run.state_dict().items() if name.startswith("stages.")}
    assert all(torch.equal(value, before[name]) for name, value in trunk.items())
    assert not torch.equal(run.get_parameter("exits.2.fc.weight")[:3], before["fc.weight"])
    origin = offramp.load(tmp_path / "yes", into=network(damping=True)).origin
    assert origin is not None
    assert origin["init"]["file"] == "weights.pth"


def test_what_is_kept_of_an_image_is_its_pooled_maps() -> None:
    net = network()
    with frozen(net):
        assert Features(net, SHAPE).width == 64 + 128 + 512


def test_every_weight_is_fine_tuned_at_its_rate(tmp_path: Path) -> None:
    labels = np.arange(32) % 2
    pixels = np.random.default_rng(0).integers(0, 255, (32, *SHAPE)).astype(np.uint8)
    parts = data.arrays(pixels, labels, holdout=0, batch_size=16)
    net = network(num_classes=2)
    before = {name: value.clone() for name, value in net.named_parameters()}
    offramp.fit(net, CrossEntropy(), parts.train, parts.val, TrainConfig(epochs=1, trunk_lr=0.1), out=tmp_path)
    assert all(not torch.equal(value, before[name]) for name, value in net.named_parameters())
