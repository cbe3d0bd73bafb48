"""Networks made of torchvision's and timm's classifiers by name: `torchvision/NAME`, `timm/NAME`.

timm takes seconds to import and knows the way to a model hub, so it is imported here alone and only when a name asks
for it; the hub is asked for nothing unless `pretrained` says so.
"""

import difflib
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import nn

from offramp import config
from offramp.backbones.attached.attaching import attach, image_shape_of
from offramp.backbones.attached.heads import HeadKind
from offramp.backbones.attached.placing import At
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, builder

Side = int | Sequence[int] | None
WITH_AUXILIARY = ("googlenet", "inception_v3")  # classifiers that have further outputs in training


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
    """A classifier of timm or torchvision with exits, see `attach`.

    Args:
        model: `timm/NAME` or `torchvision/NAME`.
        at: As for `attach`.
        head: As for `attach`.
        pretrained: Fetch its weights from the hub.
        num_classes: N.
        damping: Whether each exit has the damping neuron.
        in_channels: Channels of the images.
        image_size: Side of the images, or height and width; by default what the library gives for it.
        arguments: More for the library.

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
    network.origin |= {"model": model, "library": f"{library} {version}", "weights": "hub" if pretrained else None}
    return network


def named_model(
    model: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: Side = None,
    **arguments: Any,
) -> nn.Module:
    """The classifier itself, without exits; arguments as for `named`."""
    library, _, name = model.partition("/")
    sides = None if image_size is None else _sides(image_size)
    return _LIBRARIES[library](name, pretrained, num_classes, in_channels, sides, arguments)


def image_shape_for(model: nn.Module, image_size: Side, in_channels: int | None = None) -> tuple[int, int, int]:
    """`(channels, height, width)` of the images that a model takes, of this size and so many channels where given."""
    channels = _first_conv(model)[1].in_channels if in_channels is None else in_channels
    if image_size is None:
        return channels, *image_shape_of(model)[1:]
    return channels, *_sides(image_size)


def _of_timm(
    name: str,
    pretrained: bool,
    num_classes: int,
    in_channels: int,
    sides: tuple[int, int] | None,
    arguments: dict[str, Any],
) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UsageError("timm/NAME needs timm: pip install 'offramp[timm]'.") from None
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}.{_near(name, timm.list_models())}")
    known = timm.get_pretrained_cfg(name)
    if sides is not None and known is not None and known.fixed_input_size and tuple(known.input_size[1:]) != sides:
        arguments = {"img_size": sides} | arguments
    build = functools.partial(timm.create_model, name, num_classes=num_classes, in_chans=in_channels, **arguments)
    return _built(f"timm/{name}", lambda: build(pretrained=pretrained))


def _of_torchvision(
    name: str,
    pretrained: bool,
    num_classes: int,
    in_channels: int,
    sides: tuple[int, int] | None,
    arguments: dict[str, Any],
) -> nn.Module:
    """Another number of channels gets a fresh first convolution (grey: the sum of its weights)."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UsageError(f"torchvision has no classifier {name!r}.{_near(name, names)}")
    if sides is not None:
        if name.startswith("vit_"):
            if sides[0] != sides[1]:
                raise UsageError(f"torchvision/{name} takes square images, not {sides[0]} x {sides[1]}.")
            arguments = {"image_size": sides[0]} | arguments
        if name.startswith("maxvit"):
            arguments = {"input_size": sides} | arguments
    if name in WITH_AUXILIARY and not pretrained:
        arguments = {"aux_logits": False, "init_weights": True} | arguments
    # Weights have the classes that they have been trained for; `attach` gives the last Linear fresh ones.
    arguments = ({"weights": "DEFAULT"} if pretrained else {"num_classes": num_classes}) | arguments
    model = _built(f"torchvision/{name}", functools.partial(torchvision.models.get_model, name, **arguments))
    place, conv = _first_conv(model)
    if conv.in_channels != in_channels:
        model.set_submodule(place, _for_channels(conv, in_channels, pretrained))
    return model


def _built(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # of the library, about what it was given
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{name} cannot be built: {lines[0].rstrip('.')}.") from error


def _first_conv(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(model).__name__} has no convolution to read images with.")


def _for_channels(conv: nn.Conv2d, in_channels: int, pretrained: bool) -> nn.Conv2d:
    if pretrained and in_channels != 1:
        raise UsageError(f"Weights for {conv.in_channels} channels cannot be used for images of {in_channels}.")
    settings = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    fresh = nn.Conv2d(in_channels, conv.out_channels, bias=conv.bias is not None, **settings)
    with torch.no_grad():
        if pretrained:
            fresh.weight.copy_(conv.weight.sum(1, keepdim=True))
        if fresh.bias is not None and conv.bias is not None:
            fresh.bias.copy_(conv.bias)
    return fresh


def _sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise UsageError(f"image_size must be one side or (height, width), not {image_size!r}.")
    return sides[0], sides[1]


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


_LIBRARIES: Mapping[str, Callable[..., nn.Module]] = {"timm": _of_timm, "torchvision": _of_torchvision}


def is_named(name: str) -> bool:
    """Whether a name such as `timm/resnet18` stands for a model of a library."""
    library, slash, _ = name.partition("/")
    return bool(slash) and library in _LIBRARIES


def settled(model: str, **arguments: Any) -> EarlyExitNet:
    """`named`, with a recipe that names the cuts and asks no hub: by the time it is used the weights are a run's."""
    network = named(model, **arguments)
    assert network.spec is not None
    assert network.origin is not None
    network.spec = Spec(network.spec.name, {**network.spec.args, "at": network.origin["at"], "pretrained": False})
    return network


def model_of(spec: Spec, *, in_channels: int | None, image_size: Side) -> nn.Module:
    """The model that `timm/NAME`, `torchvision/NAME` or `package.module:Name` stands for, without exits.

    Raises:
        UsageError: There is no such model, or it is an `EarlyExitNet` already.
    """
    registry = {spec.name: functools.partial(named_model, spec.name)} if is_named(spec.name) else {}
    given = {"in_channels": in_channels, "image_size": image_size}
    model = config.build(spec, registry, "model", **{key: value for key, value in given.items() if value is not None})
    if isinstance(model, EarlyExitNet):
        raise UsageError(f"model {spec.name!r} has exits already; `offramp cost` shows what they cost.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {spec.name!r} gives a {type(model).__name__}, not a torch.nn.Module.")
    return model
