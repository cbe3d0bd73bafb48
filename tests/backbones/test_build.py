"""From a name and the data at hand to a network."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp import backbones, registry
from offramp.config import Spec
from offramp.costs import cost
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, rebuild

MINE = """
from torch import nn
from offramp import EarlyExitNet
from offramp.backbones import msdnet


def two(num_classes, in_channels=1, damping=False, width=6):
    stages = [nn.Conv2d(in_channels, width, 3, 2), nn.Conv2d(width, width, 3)]
    pools = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in stages]
    exits = [nn.Sequential(pool, nn.Linear(width, num_classes + damping)) for pool in pools]
    return EarlyExitNet(stages, exits, damping=damping)


class Fixed(EarlyExitNet):
    def __init__(self):
        super().__init__([nn.Flatten()], [nn.Linear(64, 10)])


def thin(**knobs):
    return msdnet(exits=2, channels=2, growth=2, **knobs)


def nothing():
    return nn.Linear(1, 1)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_networks.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    monkeypatch.setenv("OFFRAMP_ALLOW_CODE", "my_networks")
    return "my_networks"


def test_the_spec_comes_first_then_the_data_then_the_preset() -> None:
    data: dict[str, Any] = {"num_classes": 7, "image_shape": (1, 28, 28), "damping": True}
    network = backbones.build(Spec("msdnet7-cifar100", {"exits": 2}), **data)
    assert (network.num_exits, network.num_classes, network.image_shape, network.damping) == (2, 7, (1, 28, 28), True)
    alone = backbones.build(Spec("msdnet7-cifar100", {"exits": 2, "num_classes": 9}))
    assert (alone.num_classes, alone.image_shape, alone.damping) == (9, (3, 32, 32), False)


def test_a_preset_that_cannot_follow_the_data_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="3 scales cannot take 16 x 16 images"):
        backbones.build(Spec("msdnet7-cifar100"), num_classes=10, image_shape=(1, 16, 16))
    with pytest.raises(UsageError, match="4 scales cannot take 32 x 32 images"):
        backbones.build(Spec("msdnet5-imagenet"), num_classes=10, image_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 5}, "has 5 classes, the data have 10"),
        ({"image_size": 32}, r"made for images .* of \(1, 32, 32\), the data have \(1, 28, 28\)"),
        ({"damping": False}, "A damping neuron is needed and network 'msdnet' has none"),
        ({"depth": 3}, "network 'msdnet' has no argument 'depth'"),
    ],
)
def test_arguments_against_the_data_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        backbones.build(
            Spec("msdnet", {"exits": 1, **arguments}), num_classes=10, image_shape=(1, 28, 28), damping=True
        )


def test_images_need_not_be_square() -> None:
    network = backbones.build(Spec("ranet6-cifar10"), image_shape=(1, 20, 40))
    assert network.image_shape == (1, 20, 40)
    assert network.eval()(torch.zeros(1, 1, 20, 40)).shape == (6, 1, 10)


def test_auto_takes_arguments_and_needs_images() -> None:
    network = backbones.build(Spec("auto", {"exits": 5}), num_classes=10, image_shape=(1, 16, 16))
    assert network.num_exits == 5
    with pytest.raises(UsageError, match="there are none here; name a preset"):
        backbones.build(Spec("auto"))


def test_an_unknown_name_gets_the_near_ones() -> None:
    with pytest.raises(UsageError, match=r"Unknown network 'msdnet7-cifar'. Did you mean msdnet7-cifar10"):
        backbones.build(Spec("msdnet7-cifar"))


def test_a_network_of_ones_own_is_asked_for_what_it_takes_and_can_be_built_again(mine: str) -> None:
    spec = Spec(f"{mine}:two", {"width": 4})
    network = backbones.build(spec, num_classes=3, image_shape=(2, 9, 9), damping=True)
    assert network(torch.zeros(5, 2, 9, 9)).shape == (2, 5, 4)
    assert network.spec is not None
    again = rebuild(Spec.from_json(json.loads(json.dumps(network.spec.to_json()))))
    again.load_state_dict(network.state_dict())
    assert (again.num_classes, again.damping, again.num_exits) == (3, True, 2)


def test_a_builder_that_hands_its_arguments_on_to_ours(mine: str) -> None:
    network = backbones.build(Spec(f"{mine}:thin"), num_classes=3, image_shape=(1, 28, 28), damping=True)
    assert (network.num_exits, network.num_classes, network.image_shape) == (2, 3, (1, 28, 28))
    assert network.spec is not None
    assert network.spec.name == "offramp.backbones.msdnet:msdnet"


def test_a_class_is_a_builder_too(mine: str) -> None:
    network = backbones.build(Spec(f"{mine}:Fixed"), num_classes=10, image_shape=(1, 8, 8))
    assert isinstance(network, EarlyExitNet)
    assert network.spec == Spec("my_networks:Fixed", {})


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("Fixed", {"damping": True}, "let its builder take damping=True and give each exit one more output"),
        ("Fixed", {"num_classes": 3}, "has 10 classes, the data have 3; let it take num_classes=3"),
        ("nothing", {}, r"a Linear, not an offramp.EarlyExitNet; .* returns offramp.backbones.attach\(model, at="),
        ("absent", {}, "module 'my_networks' has no 'absent'"),
    ],
)
def test_a_network_of_ones_own_that_does_not_fit(mine: str, name: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        backbones.build(Spec(f"{mine}:{name}"), **asked)


def test_a_network_that_memory_cannot_hold_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**18}[name])  # 1 GiB
    assert backbones.build(Spec("msdnet", {"exits": 3})).num_exits == 3
    with pytest.raises(UsageError, match=r"exits=30' has [\d,]+ parameters: .* there are 1\. Use fewer"):
        backbones.build(Spec("msdnet", {"exits": 30}))


@pytest.fixture(params=[name for name in registry.BACKBONES if name not in ("collaborating", "prefix")])
def registered(request: pytest.FixtureRequest) -> EarlyExitNet:
    """Every backbone that is no run's, for grey images of 5 classes."""
    return backbones.build(Spec(request.param), num_classes=5, image_shape=(1, 32, 32), damping=True).eval()


def test_a_registered_backbone_has_the_logits_of_every_exit_and_costs_more_with_each(registered: EarlyExitNet) -> None:
    images = torch.randn(3, 1, 32, 32)
    logits_KBC = registered(images)
    assert logits_KBC.shape == (registered.num_exits, 3, 6)
    logits_KBC.sum().backward()
    reached = {name for name, parameter in registered.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in registered.named_parameters()}
    costs = [exit.operations for exit in cost(registered, (1, 32, 32)).exits]
    assert costs == sorted(set(costs))


def test_a_registered_backbone_is_built_again_by_its_recipe(registered: EarlyExitNet) -> None:
    assert registered.spec is not None
    again = rebuild(Spec.from_json(json.loads(json.dumps(registered.spec.to_json())))).eval()
    again.load_state_dict(registered.state_dict())
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(again(images), registered(images))
