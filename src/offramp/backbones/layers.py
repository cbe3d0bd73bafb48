"""What MSDNet and RANet are both made of: units, branches, the stem, the heads; and the checks of their arguments."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from offramp.checks import check_choice, check_counts, check_flags, check_whole, shown
from offramp.errors import UsageError

StemKind = Literal["cifar", "imagenet"]
STEM_HALVINGS = {"cifar": 0, "imagenet": 2}  # how often the finest map of a stem has been halved
MOST_LAYERS, MOST_CHANNELS = 500, 2**16
_MOST_SCALES, _MOST_FACTOR = 16, 1024
HEAD_SIDES = (5, 12)  # two strided convolutions and a 2 x 2 pool leave one pixel of these sides, and of no others


class Unit(nn.Sequential):
    """Convolution without bias (padded to keep the side, for stride 1), batch norm, ReLU."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels), relu=nn.ReLU(inplace=True)))


def branch(in_channels: int, out_channels: int, factor: int | None, stride: int = 1) -> nn.Sequential:
    """A bottleneck, a 1 x 1 unit to at most `factor * out_channels` channels, and a 3 x 3 unit; without a factor, the
    latter alone.
    """
    if factor is None:
        return nn.Sequential(Unit(in_channels, out_channels, 3, stride))
    narrow = min(in_channels, factor * out_channels)
    return nn.Sequential(Unit(in_channels, narrow, 1), Unit(narrow, out_channels, 3, stride))


class Stem(nn.Module):
    """The first layer: images to one map per scale, finest first, each made from the one before by a stride.

    Of the kind `cifar` the finest map has the images' side, of `imagenet` a quarter of it.
    """

    def __init__(self, kind: StemKind, in_channels: int, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        check_choice("stem", kind, tuple(STEM_HALVINGS))
        check_whole("in_channels", in_channels, 1, MOST_CHANNELS)
        finest = Unit(in_channels, channels[0], 3) if kind == "cifar" else _imagenet_unit(in_channels, channels[0])
        coarser = [Unit(a, b, 3, stride) for (a, b), stride in zip(pairwise(channels), strides, strict=True)]
        self.scales = nn.ModuleList([finest, *coarser])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """One map per scale for images `[B, channels, height, width]`."""
        maps = []
        for scale in self.scales:
            x = scale(x)
            maps.append(x)
        return tuple(maps)


def _imagenet_unit(in_channels: int, out_channels: int) -> nn.Sequential:
    """The one convolution of these networks that has a bias (as the originals have it)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3),
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )


def heads(in_channels: Sequence[int], num_classes: int, damping: bool, width: int | None) -> list[nn.Sequential]:
    """One exit for each map, given the maps' channels; `damping` adds one output, the damping neuron, to each."""
    check_counts(num_classes=num_classes)
    check_flags(damping=damping)
    if width is not None:
        check_whole("head_channels", width, 1, MOST_CHANNELS)
    return [_head(channels, num_classes + damping, width or channels) for channels in in_channels]


def _head(in_channels: int, num_outputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            first=Unit(in_channels, width, 3, stride=2),
            second=Unit(width, width, 3, stride=2),
            pool=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            linear=nn.Linear(width, num_outputs),
        )
    )


def check_layers(network: str, number: int) -> None:
    """Refuse what takes minutes to build and would not run: the deepest published ones have a tenth of it."""
    if number > MOST_LAYERS:
        raise UsageError(
            f"{network} would have {number:,} layers, more than the {MOST_LAYERS} that are built. Use fewer or shorter "
            "blocks."
        )


def check_lists(**values: Any) -> None:
    """Refuse what is not a list of whole numbers of at least 1, and lists of unequal length."""
    for name, value in values.items():
        if not isinstance(value, (list, tuple)) or not value:
            raise UsageError(f"{name} must be a list of whole numbers, such as 1,2,4, not {shown(value)}.")
        if len(value) > _MOST_SCALES:
            raise UsageError(f"{name} must have at most {_MOST_SCALES} entries, not {len(value)}.")
        for i, item in enumerate(value):
            check_whole(f"{name}[{i}]", item, 1, _MOST_FACTOR)
    if len({len(value) for value in values.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(value)}" for name, value in values.items())
        raise UsageError(f"One entry per scale is needed in each list; {lengths}.")


def sides_of(image_size: Any) -> tuple[Any, Any]:
    """Height and width of what is one side of a square, or both; whether they are numbers is not looked at."""
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise UsageError(f"image_size must be one side or (height, width), not {shown(image_size)}.")
    return sides[0], sides[1]


def check_image_size(network: str, image_size: Any, stem: StemKind, num_scales: int) -> tuple[int, int]:
    """Height and width, if the coarsest of `num_scales` maps is one that a head can read."""
    height, width = sides = sides_of(image_size)
    check_counts(height=height, width=width)
    shrunk = coarsest_sides(sides, stem, num_scales)
    least, most = HEAD_SIDES
    if least <= min(shrunk) and max(shrunk) <= most:
        return height, width
    times = 2 ** (STEM_HALVINGS[stem] + num_scales - 1)
    message = (
        f"{network} with {_scales(num_scales)} cannot take {height} x {width} images: its exits would read maps of "
        f"{shrunk[0]} x {shrunk[1]}, and they read sides of {least} to {most}. "
        f"Images of {(least - 1) * times + 1} to {most * times} pixels a side fit"
    )
    other = deepest_scales(sides, stem)
    fits = other > 0 and max(coarsest_sides(sides, stem, other)) <= most
    raise UsageError(message + (f"; for these images, use {_scales(other)} (as many growth_factors)." if fits else "."))


def _scales(number: int) -> str:
    return "1 scale" if number == 1 else f"{number} scales"


def coarsest_sides(sides: Sequence[int], stem: StemKind, num_scales: int) -> tuple[int, ...]:
    """Sides of the coarsest of `num_scales` maps; each halving rounds up."""
    times = 2 ** (STEM_HALVINGS[stem] + num_scales - 1)
    return tuple(math.ceil(side / times) for side in sides)


def deepest_scales(sides: Sequence[int], stem: StemKind) -> int:
    """The largest number of scales whose coarsest map a head can still read; 0 where one scale is too many."""
    num_scales = 0
    while min(coarsest_sides(sides, stem, num_scales + 1)) >= HEAD_SIDES[0]:
        num_scales += 1
    return num_scales
