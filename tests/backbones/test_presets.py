"""Presets as data, and the network that fits the data."""

import pytest
import torch

from offramp import backbones
from offramp.backbones import PRESETS, msdnet, ranet
from offramp.backbones.presets import fitting
from offramp.config import Spec
from offramp.errors import UsageError


@pytest.mark.parametrize("name", PRESETS)
def test_names_say_what_the_presets_are(name: str) -> None:
    family, *_, data = name.split("-")
    spec = PRESETS[name]
    assert family.startswith(spec.name)
    assert spec.args["num_classes"] == {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[data]
    assert spec.args["image_size"] == (224 if data == "imagenet" else 32)
    if spec.name == "msdnet":
        num_exits = spec.args["exits"]
    else:
        num_exits = spec.args["blocks"] + spec.args["block_step"] * (len(spec.args["scales"]) - 1)
    assert family == f"{spec.name}{num_exits}"


def test_ranet_on_imagenet_has_the_factors_of_the_published_script() -> None:
    """They were those of the README, 4-2-2-1."""
    assert tuple(PRESETS["ranet8-imagenet"].args["growth_factors"]) == (4, 2, 1, 1)


def test_the_builders_defaults_are_the_paper_networks() -> None:
    assert backbones.build(Spec("msdnet7-cifar100")).spec == msdnet().spec
    assert backbones.build(Spec("ranet6-cifar100")).spec == ranet().spec


@pytest.mark.parametrize(
    ("side", "exits", "num_scales", "stem"),
    [
        (8, 3, 1, "cifar"),
        (16, 3, 2, "cifar"),
        (23, 3, 3, "cifar"),
        (28, 4, 3, "cifar"),
        (32, 7, 3, "cifar"),
        (64, 7, 4, "cifar"),
        (95, 7, 5, "cifar"),
        (96, 5, 3, "imagenet"),
        (224, 5, 4, "imagenet"),
    ],
)
def test_auto_fits_the_images_and_trains_every_weight(side: int, exits: int, num_scales: int, stem: str) -> None:
    with torch.device("meta"):
        network = backbones.build(Spec("auto"), num_classes=3, image_shape=(1, side, side), damping=True)
    assert network.spec is not None
    knobs = network.spec.args
    assert (network.num_exits, len(knobs["growth_factors"]), knobs["stem"]) == (exits, num_scales, stem)
    assert (network.num_classes, network.image_shape, network.damping) == (3, (1, side, side), True)
    thin = msdnet(**{**knobs, "channels": 2, "growth": 2, "head_channels": 2})
    thin(torch.rand(2, 1, side, side)).square().sum().backward()
    assert all(p.grad is not None for p in thin.parameters())


def test_auto_at_the_usual_sizes_is_the_paper_network() -> None:
    cifar = backbones.build(Spec("auto"), num_classes=100, image_shape=(3, 32, 32))
    assert cifar.spec == backbones.build(Spec("msdnet7-cifar100")).spec
    assert {**PRESETS["msdnet5-imagenet"].args, **fitting((3, 224, 224))} == PRESETS["msdnet5-imagenet"].args


def test_images_that_are_too_small_for_anything() -> None:
    with pytest.raises(UsageError, match="No network fits images of 4 x 40; the least side is 5"):
        fitting((1, 4, 40))


@pytest.mark.parametrize(("side", "num_images", "most"), [(64, 149, 0.7e6), (224, 149, 0.7e6), (128, 20_000, 6e6)])
def test_few_images_get_a_small_network(side: int, num_images: int, most: float) -> None:
    """149 images of 128 pixels were given 27 million parameters."""
    network = backbones.build(Spec("auto"), num_classes=5, image_shape=(3, side, side), num_images=num_images)
    assert sum(parameter.numel() for parameter in network.parameters()) < most
    assert fitting((3, side, side), 10**6) == fitting((3, side, side))
