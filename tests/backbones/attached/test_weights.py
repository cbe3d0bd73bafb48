"""Weights of a library's hub, which is stubbed: a run of a pretrained model is built again without them."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from offramp import backbones
from offramp.backbones.attached import zoo
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, rebuild

SHAPE = (3, 32, 32)
Hub = Callable[[nn.Module | None], None]


class Tiny(nn.Module):
    """In the place of torchvision's classes that take these arguments, built by torchvision's own functions."""

    auxiliary: tuple[str, ...] = ()

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        init_weights: bool | None = None,
        image_size: int = 224,
        **others: Any,
    ) -> None:
        super().__init__()
        self.aux_logits, self.transform_input, self.image_size = aux_logits, transform_input, image_size
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        for name in self.auxiliary if aux_logits else ():
            self.add_module(name, nn.Linear(4, num_classes))
        self.table = nn.Parameter(torch.randn(image_size))
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Any:
        if self.transform_input:
            x = x * 2 + 1
        x = self.second(self.first(x)).mean((2, 3)) + self.table.mean()
        if self.training and self.auxiliary and self.aux_logits:
            return self.head(x), x
        return self.head(x)


class WithTwo(Tiny):
    auxiliary = ("aux1", "aux2")


class WithOne(Tiny):
    auxiliary = ("AuxLogits",)


STUBS = {
    "googlenet": ("torchvision.models.googlenet", "GoogLeNet", WithTwo),
    "inception_v3": ("torchvision.models.inception", "Inception3", WithOne),
    "vit_h_14": ("torchvision.models.vision_transformer", "VisionTransformer", Tiny),
}
for kind in (Tiny, WithOne, WithTwo):
    kind.__module__ = "torchvision.models.stub"  # attach asks where a class is from


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Says which model's weights there are; None: nobody may ask."""
    for module, name, stub in STUBS.values():
        monkeypatch.setattr(sys.modules[module], name, stub)

    def hold(model: nn.Module | None) -> None:
        def fetch(weights: Any, **options: Any) -> dict[str, Tensor]:
            assert model is not None, "the hub was asked"
            return model.state_dict()

        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fetch)

    hold(None)
    return hold


def built_twice(hub: Hub, name: str, source: nn.Module, num_classes: int, **more: Any) -> EarlyExitNet:
    """A pretrained network, of which it is checked that its recipe gives the same without the hub."""
    hub(source)
    spec = Spec(f"torchvision/{name}", {"pretrained": True} | more)
    network = backbones.build(spec, num_classes=num_classes, image_shape=SHAPE, damping=True)
    hub(None)
    assert network.spec is not None
    again = rebuild(Spec.from_json(network.spec.to_json()))
    assert again.spec == network.spec
    assert again.origin is not None
    assert again.origin["weights"] is None
    again.load_state_dict(network.state_dict())
    images = torch.randn(2, *SHAPE)
    for mode in (True, False):
        found = []
        for net in (network, again):
            torch.manual_seed(0)
            found.append(net.train(mode)(images))
        assert torch.equal(*found)
    return network


@pytest.mark.parametrize("num_classes", [1000, 4])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_what_weights_imply_stands_in_the_recipe(hub: Hub, name: str, num_classes: int) -> None:
    source = STUBS[name][2](transform_input=True)
    network = built_twice(hub, name, source, num_classes, at="first")
    assert network.origin is not None
    assert (network.origin["weights"], network.origin["licence"]) == ("hub", None)
    assert not any(part in name for name in network.state_dict() for part in ("aux", "Aux"))
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        given, wanted = network.eval()(images)[-1, :, :num_classes], source.eval()(images)
    if num_classes == 1000:
        torch.testing.assert_close(given, wanted)
    assert torch.equal(network.get_parameter("stages.1.second.weight"), source.get_parameter("second.weight"))


def test_without_weights_nothing_is_implied(hub: Hub) -> None:
    network = backbones.build(Spec("torchvision/googlenet", {"at": "first"}), num_classes=4, image_shape=SHAPE)
    assert network.spec is not None
    assert "transform_input" not in network.spec.args


def test_a_head_that_is_no_linear_is_the_librarys_own_for_other_classes_too(hub: Hub) -> None:
    source = torchvision.models.get_model("squeezenet1_1")
    network = built_twice(hub, "squeezenet1_1", source, 4, at="features.4").eval()
    found = {name.split(".", 2)[2]: value for name, value in network.state_dict().items() if "exits.0" not in name}
    wanted = source.state_dict()
    assert found.pop("classifier.1.weight").shape == (4, 512, 1, 1)
    assert found.pop("classifier.1.bias").shape == (4,)
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_the_size_that_weights_are_for_stands_in_the_recipe(hub: Hub) -> None:
    source = Tiny(image_size=518)
    hub(source)
    network = zoo.settled("torchvision/vit_h_14", pretrained=True, at="first", num_classes=4)
    hub(None)
    assert network.spec is not None
    assert network.origin is not None
    assert network.spec.args["image_size"] == [518, 518]
    assert network.origin["licence"] == "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
    rebuild(network.spec).load_state_dict(network.state_dict())


def test_weights_may_be_named(hub: Hub) -> None:
    source = WithTwo(transform_input=True)
    network = built_twice(hub, "googlenet", source, 4, at="first", pretrained=False, weights="IMAGENET1K_V1")
    assert network.origin is not None
    assert network.origin["weights"] == "hub"
    assert network.spec is not None
    assert "weights" not in network.spec.args
    with pytest.raises(UsageError, match=r"torchvision/googlenet has no weights 'V9', but IMAGENET1K_V1"):
        zoo.named_model("torchvision/googlenet", weights="V9")


@pytest.mark.parametrize("pretrained", [False, True])
def test_auxiliary_outputs_are_refused(hub: Hub, pretrained: bool) -> None:
    with pytest.raises(UsageError, match="torchvision/inception_v3 has exits where it is cut and no auxiliary ones"):
        zoo.named_model("torchvision/inception_v3", pretrained=pretrained, aux_logits=True)


def test_grey_images_get_the_sum_of_the_hubs_weights(hub: Hub) -> None:
    source = WithTwo()
    hub(source)
    model = zoo.named_model("torchvision/googlenet", pretrained=True, in_channels=1)
    torch.testing.assert_close(model.get_parameter("first.weight"), source.first.weight.sum(1, keepdim=True))


@pytest.mark.parametrize("pretrained", [False, True])
def test_timms_licence_is_that_of_weights_that_were_fetched(pretrained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda model, **options: fetched.append(model))
    spec = Spec("timm/resnet10t", {"at": "layer1", "pretrained": pretrained})
    network = backbones.build(spec, num_classes=4, image_shape=SHAPE)
    assert network.origin is not None
    assert len(fetched) == pretrained
    assert network.origin["licence"] == ("apache-2.0" if pretrained else None)
    assert network.origin["weights"] == ("hub" if pretrained else None)
