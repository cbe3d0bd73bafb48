"""Networks made of torchvision's and timm's classifiers by name: `torchvision/NAME`, `timm/NAME`."""

import contextlib
import difflib
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from offramp import config
from offramp.backbones.attached.attaching import attach, image_shape_of
from offramp.backbones.attached.heads import HeadKind
from offramp.backbones.attached.libraries import (
    Side,
    asks_hub,
    first_conv,
    is_named,
    licence_of,
    named_model,
    plain_arguments,
)
from offramp.backbones.layers import sides_of
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.graphs.sites import At
from offramp.network import EarlyExitNet, builder


def trained_on(spec: Spec) -> dict[str, Any]:
    """What timm says of the images that its weights of a model were trained on: image_size, mean, std.

    Empty where it says nothing, or the images are none of three channels with equal sides.
    """
    library, _, name = spec.name.partition("/")
    if library != "timm":
        return {}
    with contextlib.suppress(ImportError, RuntimeError):  # no timm, or no such weights: building it says so
        known = importlib.import_module("timm").get_pretrained_cfg(name)
        if known is not None and known.input_size == (3, known.input_size[1], known.input_size[1]):
            expected = {"image_size": known.input_size[1], "mean": known.mean, "std": known.std}
            return {key: value for key, value in expected.items() if key not in spec.args}
    return {}


@builder
def named(
    model: str,
    *,
    at: At = "auto",
    head: HeadKind = "pool",
    pretrained: bool = False,
    num_classes: int = 1000,
    damping: bool = False,
    in_channels: int = 3,
    image_size: Side = None,
    **arguments: Any,
) -> EarlyExitNet:
    """A classifier of timm or torchvision, `timm/NAME` or `torchvision/NAME`, with exits: see `attach`.

    Args:
        pretrained: Fetch its weights from the hub; its last layer starts fresh where it has other classes.
        image_size: Side of the images, or height and width; by default what the library gives for it.
        arguments: More for the library. `weights` of torchvision, such as `IMAGENET1K_V1`, says which to fetch.

    Raises:
        UsageError: timm is not installed, there is no such model, or it cannot be cut or be for such images.
    """
    of_data: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    classifier = named_model(model, pretrained=pretrained, **of_data, **arguments)
    shape = image_shape_for(classifier, image_size, in_channels)
    network = attach(classifier, at, num_classes=num_classes, damping=damping, head=head, image_shape=shape)
    library = model.partition("/")[0]
    version = importlib.import_module(library).__version__.partition("+")[0]
    assert network.origin is not None
    network.origin |= {"model": model, "library": f"{library} {version}"}
    if asks_hub(pretrained, arguments):
        network.origin |= {"weights": "hub", "licence": licence_of(model, classifier, pretrained, arguments)}
    return network


def image_shape_for(model: nn.Module, image_size: Side, in_channels: int | None = None) -> tuple[int, int, int]:
    """`(channels, height, width)` of the images that a model takes, of this size and so many channels where given."""
    channels = first_conv(model)[1].in_channels if in_channels is None else in_channels
    if image_size is None:
        return channels, *image_shape_of(model)[1:]
    return channels, *sides_of(image_size)


def builder_of(name: str, registry: Mapping[str, Any], kind: str) -> Any:
    """What `package.module:Name` stands for; `registry` are names that would be known as well.

    Refused are a model that is built already, a library's name without the library, and what is not there.
    """
    if ":" not in name and not difflib.get_close_matches(name, list(registry), n=1, cutoff=0.8):
        import torchvision

        libraries = ["torchvision"] if name in torchvision.models.list_models(module=torchvision.models) else []
        with contextlib.suppress(ImportError):
            libraries += ["timm"] if importlib.import_module("timm").is_model(name) else []
        if libraries:
            hint = " or ".join(f"{library}/{name}" for library in libraries)
            raise UsageError(f"Unknown {kind} {name!r}. Did you mean {hint}?")
    builder = config.resolve(name, registry, kind)
    if isinstance(builder, nn.Module):
        raise UsageError(
            f"{kind} {name!r} is a {type(builder).__name__} already; name a function that returns "
            f"{'it' if kind == 'model' else 'a network with exits'}."
        )
    return builder


def settled(model: str, **arguments: Any) -> EarlyExitNet:
    """`named`, with a recipe that names the cuts and asks no hub: by the time it is used the weights are a run's."""
    network = named(model, **arguments)
    assert network.spec is not None
    assert network.origin is not None
    assert network.image_shape is not None
    recipe = plain_arguments(model, network.spec.args["pretrained"], network.spec.args)
    recipe |= {"at": network.origin["at"], "pretrained": False}
    if recipe["image_size"] is None:  # the library's answer may depend on the weights
        recipe["image_size"] = list(network.image_shape[1:])
    network.spec = Spec(network.spec.name, recipe)
    return network


def model_of(spec: Spec, *, in_channels: int | None, image_size: Side) -> nn.Module:
    """The model that `timm/NAME`, `torchvision/NAME` or `package.module:Name` stands for, without exits."""
    builder = functools.partial(named_model, spec.name) if is_named(spec.name) else builder_of(spec.name, {}, "model")
    registry = {spec.name: builder}
    wanted = {"in_channels": in_channels, "image_size": image_size}
    model = config.build(spec, registry, "model", **{key: value for key, value in wanted.items() if value is not None})
    if isinstance(model, EarlyExitNet):
        raise UsageError(f"model {spec.name!r} has exits already; `offramp cost` shows what they cost.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {spec.name!r} gives a {type(model).__name__}, not a torch.nn.Module.")
    return model
