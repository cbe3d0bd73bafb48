"""Networks with exits: MSDNet, RANet, presets of both, exits on other models, and how a name and data become one.

`build` is what the command line uses; in Python, `msdnet(exits=7, num_classes=100, damping=True)` is as good.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from offramp import config, registry
from offramp.backbones.attached import attach, zoo
from offramp.backbones.attached.libraries import is_named
from offramp.backbones.msdnet import msdnet
from offramp.backbones.presets import PRESETS, fitting
from offramp.backbones.ranet import ranet
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, with_exits

__all__ = ["NETWORKS", "PRESETS", "attach", "build", "msdnet", "ranet"]

_BUILDERS: Mapping[str, Callable[..., EarlyExitNet]] = registry.load(registry.BACKBONES)
NETWORKS: Mapping[str, Callable[..., EarlyExitNet]] = {
    "auto": msdnet,  # with the knobs that `build` finds to fit the images
    **_BUILDERS,
    **{name: functools.partial(_BUILDERS[preset.name], **preset.args) for name, preset in PRESETS.items()},
}
"""Every name that stands for a network: a builder, or a preset of one whose arguments may still be changed."""


def build(
    spec: Spec,
    *,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    num_images: int | None = None,
    damping: bool | None = None,
) -> EarlyExitNet:
    """The network that `spec` names, for the data at hand.

    Args:
        spec: `auto`, a builder, a preset, `timm/NAME` or `torchvision/NAME` (see `attach`), or `package.module:Name` (a
            function that returns an `EarlyExitNet`, or a subclass of it), with arguments.
        num_classes: N of the data.
        image_shape: `(channels, height, width)` of the images.
        num_images: How many there are to train on: of few, `auto` makes a small network.
        damping: Whether the damping neuron is wanted.

    What the spec says comes first, then the data, then a preset's own arguments. The builder is asked for the data with
    the arguments `num_classes`, `image_size`, `in_channels` and `damping`, those that it takes.

    Raises:
        UsageError: If there is no such network, its arguments contradict each other, or it does not fit the data.
    """
    asked: dict[str, Any] = {"num_classes": num_classes, "damping": damping}
    if image_shape is not None:
        channels, height, width = image_shape
        asked |= {"in_channels": channels, "image_size": height if height == width else (height, width)}
    if spec.name == "auto":
        if image_shape is None:
            raise UsageError("The network 'auto' is chosen by the images, and there are none here; name a preset.")
        spec = Spec(spec.name, {**fitting(image_shape, num_images), **spec.args})
    known = NETWORKS
    if is_named(spec.name):
        known = {spec.name: functools.partial(zoo.settled, spec.name)}
    elif spec.name not in NETWORKS:
        known = {spec.name: _signing(spec.name)}
    make = functools.partial(
        config.build, spec, known, "network", **{name: value for name, value in asked.items() if value is not None}
    )
    if spec.name in NETWORKS:
        _check_memory(spec, make)
    network = with_exits(spec.name, make())
    _check_fit(spec.name, network, num_classes, image_shape, damping)
    return network


def _signing(name: str) -> Callable[..., Any]:
    """The user's own builder; the network it returns gets the spec to build it again, unless it has one."""
    builder = zoo.builder_of(name, NETWORKS, "network")

    @functools.wraps(builder)
    def build_and_sign(**arguments: Any) -> Any:
        network = builder(**arguments)
        if isinstance(network, EarlyExitNet) and network.spec is None:
            network.spec = Spec.from_json(Spec(name, arguments).to_json())
        return network

    return build_and_sign


def _check_memory(spec: Spec, make: Callable[[], EarlyExitNet]) -> None:
    """Refuse a network whose weights, gradients and momentum would not fit; a few exits too many are enough."""
    with torch.device("meta"):  # shapes without memory
        num_parameters = sum(parameter.numel() for parameter in make().parameters())
    needed = 3 * 4 * num_parameters
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UsageError(
            f"network {str(spec)!r} has {num_parameters:,} parameters: training it takes more than "
            f"{needed / 2**30:.0f} GiB, and there are {memory / 2**30:.0f}. Use fewer exits, layers or channels."
        )


def _check_fit(
    name: str,
    network: EarlyExitNet,
    num_classes: int | None,
    image_shape: tuple[int, int, int] | None,
    damping: bool | None,
) -> None:
    if num_classes is not None and network.num_classes != num_classes:
        raise UsageError(
            f"network {name!r} has {network.num_classes} classes, the data have {num_classes}; "
            f"let it take num_classes={num_classes}."
        )
    if image_shape is not None and network.image_shape not in (None, tuple(image_shape)):
        raise UsageError(
            f"network {name!r} is made for images (channels, height, width) of {network.image_shape}, the data have "
            f"{tuple(image_shape)}; let it take in_channels and image_size."
        )
    if damping and not network.damping:
        raise UsageError(
            f"A damping neuron is needed and network {name!r} has none; let its builder take damping=True and give "
            f"each exit one more output, or choose an objective without the neuron."
        )
