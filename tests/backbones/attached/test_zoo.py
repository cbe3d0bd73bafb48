"""`timm/NAME` and `torchvision/NAME`."""

import logging
import socket
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

import offramp
from offramp import backbones
from offramp.backbones.attached import libraries
from offramp.config import Run, Spec, TrainConfig
from offramp.errors import UsageError
from offramp.files import load


def built(name: str, **arguments: object) -> offramp.EarlyExitNet:
    return backbones.build(Spec(name, arguments), num_classes=4, image_shape=(1, 32, 32), damping=True)


def test_a_name_fits_the_data_and_says_where_it_comes_from() -> None:
    network = built("torchvision/resnet18", at="layer1,layer3", head="deep")
    assert (network.num_classes, network.damping, network.image_shape) == (4, True, (1, 32, 32))
    assert network(torch.randn(2, 1, 32, 32)).shape == (3, 2, 5)
    assert network.origin is not None
    assert network.origin["at"] == ["layer1", "layer3"]
    assert network.origin["model"] == "torchvision/resnet18"
    assert network.origin["library"].startswith("torchvision 0.")
    assert network.origin["weights"] is None
    assert network.spec is not None
    assert network.spec.args["at"] == ["layer1", "layer3"]
    assert network.spec.args["pretrained"] is False


def test_timm_tells_the_input_and_no_licence_of_weights_that_are_not_there() -> None:
    network = built("timm/resnet18", at=[0.3, 0.6])
    assert network.origin is not None
    assert network.origin["licence"] is None
    assert network.origin["input"] == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [224, 224],
    }
    assert network.num_exits == 3


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("timm/resnet18x", {}, r"timm has no model 'resnet18x'. Did you mean resnet18"),
        ("timm/resnet18.a1_in1", {}, r"timm has no weights 'a1_in1' of resnet18. Did you mean .*a1_in1k"),
        ("timm/resnet18.bogus", {}, r"timm has no weights 'bogus' of resnet18. It has a1_in1k, .*tv_in1k\.$"),
        ("torchvision/resnet19", {}, r"torchvision has no classifier 'resnet19'. Did you mean resnet18"),
        ("timm/resnet18", {"wide": 3}, r"timm/resnet18 takes no argument 'wide' here"),
        ("torchvision/resnet18", {"at": "layer9"}, r"ResNet has no module 'layer9' to cut after. Did you mean layer4"),
        (
            "torchvision/maxvit_t",
            {},
            r"torchvision/maxvit_t cannot be built: Input size \(8, 8\) of block 0",
        ),
        ("tim/resnet18", {}, r"Unknown network 'tim/resnet18'"),
        ("resnet18", {}, r"Unknown network 'resnet18'. Did you mean torchvision/resnet18 or timm/resnet18\?"),
        ("vit_tiny_patch16_224", {}, r"Unknown network .* Did you mean timm/vit_tiny_patch16_224\?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        built(name, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fetching"),
    [
        ("timm/resnet18", "timm.models._builder.load_pretrained"),
        ("torchvision/resnet18", "torchvision.models._api.WeightsEnum.get_state_dict"),
    ],
)
def test_without_internet_one_line_says_what_to_do(name: str, fetching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_internet(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(fetching, no_internet)
    with pytest.raises(UsageError, match=rf"^The weights of {name} cannot be fetched \(.*not known.*--init") as caught:
        built(name, pretrained=True, at="layer1")
    assert "\n" not in str(caught.value)


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm/NAME needs timm: pip install 'offramp\[timm\]'"):
        built("timm/resnet18")


def test_timm_is_imported_only_for_its_names_and_no_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    built("timm/resnet10t", at="layer1")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "huggingface_hub")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("timm", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    built("torchvision/squeezenet1_1", at="features.4")


def test_grey_images_get_the_sum_of_the_weights_and_other_channels_are_refused_with_weights() -> None:
    conv = torch.nn.Conv2d(3, 4, 3)
    grey = libraries._for_channels(conv, 1, pretrained=True)
    image = torch.randn(1, 1, 5, 5)
    torch.testing.assert_close(grey(image), conv(image.expand(1, 3, 5, 5)))
    with pytest.raises(UsageError, match="Weights for 3 channels cannot be used for images of 5"):
        libraries._for_channels(conv, 5, pretrained=True)
    assert libraries._for_channels(conv, 5, pretrained=False).weight.shape == (4, 5, 3, 3)


def test_a_run_with_such_a_name_is_loaded_again(tmp_path: Path) -> None:
    network = Spec("torchvision/squeezenet1_1", {"at": "features.4"})
    data = offramp.DataConfig(source=Spec("digits", {"limit": 60}), batch_size=32, holdout=0)
    run = Run(data=data, network=network, training=TrainConfig(epochs=1, lr=0.01))
    with pytest.raises(UsageError, match="does not run on 1 images"):  # digits have 16 x 16 pixels
        offramp.train(run, tmp_path / "small")
    small = Spec("torchvision/resnet18", {"at": "layer1"})
    trained = offramp.train(Run(data=data, network=small, training=TrainConfig(epochs=1, lr=0.01)), tmp_path / "run")
    again = load(tmp_path / "run")
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(images), trained(images))
    assert again.spec == trained.spec


def test_a_hub_that_does_not_answer_is_one_error_without_its_clients_warnings(capsys):
    """Each attempt was two lines on standard error, before the one that counts."""
    client = logging.getLogger("huggingface_hub")
    handler, level = logging.StreamHandler(sys.stderr), client.level
    client.addHandler(handler)

    def build():
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no route to it")

    try:
        with pytest.raises(UsageError, match="cannot be fetched"):
            libraries._built("timm/resnet18", build)
    finally:
        client.removeHandler(handler)
    assert capsys.readouterr().err == ""
    assert client.level == level
