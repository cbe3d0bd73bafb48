"""RANet: sub-networks of rising resolution, each reading the features of the one before (Yang et al., CVPR 2020).

S sub-networks, the one of the lowest resolution first; so are all lists here. B_i blocks in sub-network i: *fusion*
blocks, which read the block of the same number one sub-network below, then *plain* blocks, each followed by an exit.
A stage is one plain block with the fusion blocks that come before it. Operations, parameters and initialisation are
those of the original program.

**Carry.** A block hands up the map before each of its layers and after the last. Every layer appends to its input, so
each of these maps is the first channels of the next, up to a transition or a layer that halves the side. A sub-network
therefore leaves a short *trail*: the last map of each such run, and at the end the current map, which the exit reads. A
fusion block cuts out what it needs (`At`). The carry is the stem maps of the sub-networks not yet begun and the trail
of the current one. In the last sub-network, whose maps are not read, only the current map is left. After exit 4 of
RANet-6 these are one stem map and a trail of three, for the 24 maps handed up.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.functional import interpolate

from offramp.backbones.layers import (
    MOST_CHANNELS,
    MOST_LAYERS,
    Stem,
    StemKind,
    Unit,
    branch,
    check_image_size,
    check_layers,
    check_lists,
    heads,
)
from offramp.checks import check_choice, check_number, check_whole
from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet, builder


class At(NamedTuple):
    """Where a map lies in a trail: in which entry, and how many of its channels, from the first."""

    entry: int
    channels: int

    def of(self, trail: Carry) -> Tensor:
        """The map itself."""
        return trail[self.entry][:, : self.channels]


def _resize(x: Tensor, like: Tensor) -> Tensor:
    side = like.shape[-2:]
    return x if x.shape[-2:] == side else interpolate(x, size=side, mode="bilinear", align_corners=True)


torch.fx.wrap("_resize")  # what it does depends on shapes: a tracer must take it as a whole


class PlainBlock(nn.Module):
    """Densely connected layers on one map; a transition may follow."""

    def __init__(self, layers: Sequence[nn.Module], transition: Unit | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.transition = transition

    def forward(self, trail: Carry) -> Carry:
        """The trail of the own sub-network, prolonged."""
        *done, x = trail
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return (*done, x) if self.transition is None else (*done, x, self.transition(x))


class FusionLayer(nn.Module):
    """New channels from the own map and, resized, from a map of lower resolution; the side may halve."""

    def __init__(self, own: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.own = own
        self.up = up

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """The identity, what comes from below, what is new, in this order on the channel axis."""
        own = self.own(x)
        return torch.cat([_resize(x, own), _resize(self.up(low), own), own], dim=1)


class FusionBlock(nn.Module):
    """Layers that read, each, a map of the block of the same number one sub-network below.

    Args:
        layers: The layers; with `halves`, the last one halves the side.
        extra: 1 x 1 unit on the last of the low maps, appended after the last layer.
        low_maps: Where the low maps lie in the trail of the sub-network below, one more than layers.
    """

    def __init__(
        self,
        layers: Sequence[FusionLayer],
        extra: Unit,
        transition: Unit | None,
        low_maps: Sequence[At],
        halves: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.extra = extra
        self.transition = transition
        self.low_maps = tuple(low_maps)
        self.halves = halves

    def forward(self, trail: Carry, low_trail: Carry) -> Carry:
        """The trail of the own sub-network, prolonged, with the trail of the one below at hand."""
        *done, x = trail
        before = x
        for layer, at in zip(self.layers, self.low_maps[:-1], strict=True):
            before, x = x, layer(x, at.of(low_trail))
        if self.halves:
            done.append(before)
        extra = self.extra(self.low_maps[-1].of(low_trail))
        wide = torch.cat([x, _resize(extra, x)], dim=1)
        # What is handed up leaves `extra` out, so before a transition the narrower map goes into the trail.
        return (*done, wide) if self.transition is None else (*done, x, self.transition(wide))


class Stage(nn.Module):
    """One plain block, whose output the exit reads; the fusion blocks before it, where a sub-network starts; the stem,
    where everything starts. `num_waiting` sub-networks start later.
    """

    def __init__(
        self, stem: Stem | None, fusion: Sequence[FusionBlock], plain: PlainBlock, starts: bool, num_waiting: int
    ) -> None:
        super().__init__()
        self.stem = stem
        self.fusion = nn.ModuleList(fusion)
        self.plain = plain
        self.starts = starts
        self.num_waiting = num_waiting

    def forward(self, *carry: Tensor) -> Carry:
        """The next carry, as the module's text tells; the images, for the first stage."""
        if self.stem is not None:
            carry = self.stem(*carry)[::-1]  # lowest resolution first: the order in which sub-networks start
        if self.starts:
            trail, carry = carry[:1], carry[1:]
            low_trail = carry[self.num_waiting :]
            for block in self.fusion:
                trail = block(trail, low_trail)
        else:
            trail = carry[self.num_waiting :]
        trail = self.plain(trail)
        # The maps of the last sub-network are read by no other.
        return (*carry[: self.num_waiting], *trail) if self.num_waiting else trail[-1:]


@dataclass
class _SubNetwork:
    """Builds the blocks of one sub-network in order, and keeps account of where its maps will lie in its trail."""

    growth: int
    bottleneck: int
    channels: int  # of the current map
    reduction: float
    compress: float
    below: "_SubNetwork | None"
    entry: int = 0  # of the current map in the trail
    maps: list[list[At]] = field(default_factory=list)  # handed up, per block

    def plain_block(self, num_layers: int, has_transition: bool) -> PlainBlock:
        widths = self._widths(num_layers)
        layers = [branch(width, self.growth, self.bottleneck) for width in widths[:-1]]
        self.maps.append([At(self.entry, width) for width in widths])
        self.channels = widths[-1]
        return PlainBlock(layers, self._transition(has_transition))

    def fusion_block(self, num_layers: int, has_transition: bool, halves: bool) -> FusionBlock:
        assert self.below is not None
        low_maps = self.below.maps[len(self.maps)]
        num_up = math.floor(self.compress * self.growth)
        widths = self._widths(num_layers)
        layers = []
        for j, (width, low) in enumerate(zip(widths[:-1], low_maps, strict=False), 1):
            own = branch(width, self.growth - num_up, self.bottleneck, stride=2 if halves and j == num_layers else 1)
            layers.append(FusionLayer(own, branch(low.channels, num_up, self.below.bottleneck)))
        self.maps.append([At(self.entry, width) for width in widths[:-1]])
        self.entry += halves
        self.maps[-1].append(At(self.entry, widths[-1]))
        num_extra = math.floor(self.compress * widths[-1])
        self.channels = widths[-1] + num_extra
        extra = Unit(low_maps[-1].channels, num_extra, 1)
        return FusionBlock(layers, extra, self._transition(has_transition), low_maps, halves)

    def _widths(self, num_layers: int) -> list[int]:
        """Channels before each layer and after the last."""
        return [self.channels + j * self.growth for j in range(num_layers + 1)]

    def _transition(self, wanted: bool) -> Unit | None:
        if not wanted:
            return None
        before, self.channels = self.channels, math.floor(self.reduction * self.channels)
        self.entry += 1
        if self.channels < 1:
            raise UsageError(f"reduction={self.reduction} leaves no channels of {before}; raise it.")
        return Unit(before, self.channels, 1)


@dataclass(frozen=True)
class _Trunk:
    """The knobs that decide what stands between the stem and the exits."""

    blocks: int
    block_step: int
    scales: Sequence[int]
    factors: Sequence[int]
    bottlenecks: Sequence[int]
    channels: int
    growth: int
    step: int
    step_mode: str
    compress: float
    reduction: float

    def __post_init__(self) -> None:
        for name in ("blocks", "block_step", "step"):
            check_whole(name, getattr(self, name), 1, MOST_LAYERS)
        for name in ("channels", "growth"):
            check_whole(name, getattr(self, name), 1, MOST_CHANNELS)
        check_lists(scales=self.scales, growth_factors=self.factors, bottleneck_factors=self.bottlenecks)
        check_choice("step_mode", self.step_mode, ("lg", "even"))
        check_number("compress", self.compress, "between 0 and 1", lambda share: 0 <= share <= 1)
        check_number("reduction", self.reduction, "between 0 and 1", lambda share: 0 <= share <= 1)
        if self.scales[0] != 1 or any(high - low not in (0, 1) for low, high in itertools.pairwise(self.scales)):
            raise UsageError(f"scales must start at 1 and rise by 0 or 1, such as 1,2,3; found {tuple(self.scales)}.")
        blocks = [n for i in range(len(self.scales)) for n in range(1, self.num_blocks(i) + 1)]
        check_layers("RANet", sum(map(self.num_layers, blocks)))
        for factor in self.factors[1:]:
            new, from_below = self.growth * factor, math.floor(self.compress * self.growth * factor)
            if not 1 <= from_below < new:
                raise UsageError(
                    f"compress={self.compress} takes {from_below} of the {new} channels that a fusion layer adds from "
                    f"the sub-network below; at least 1, and not all, must come from there."
                )

    def num_blocks(self, i: int) -> int:
        """Blocks of sub-network i (from 0)."""
        return self.blocks + self.block_step * i

    def num_layers(self, n: int) -> int:
        """Layers of block n (from 1) of any sub-network."""
        return self.step * n if self.step_mode == "lg" else self.step

    def stages(self, stem: Stem) -> tuple[list[Stage], list[int]]:
        """The stages, and the channels that each exit reads."""
        stages: list[Stage] = []
        widths = []
        below = None
        for i, scale in enumerate(self.scales):
            net = _SubNetwork(
                growth=self.growth * self.factors[i],
                bottleneck=self.bottlenecks[i],
                channels=self.channels * self.factors[i],
                reduction=self.reduction,
                compress=self.compress,
                below=below,
            )
            transitions = {m * self.num_blocks(i) // scale for m in range(1, scale)}
            # As many halvings as bring the side down to that of scale 1, after the last blocks of the nets below.
            halvings = {self.num_blocks(j) for j in range(i - scale + 1, i)}
            num_fused = self.num_blocks(i - 1) if i else 0
            fusion = [
                net.fusion_block(self.num_layers(n), n in transitions, n in halvings) for n in range(1, num_fused + 1)
            ]
            for n in range(num_fused + 1, self.num_blocks(i) + 1):
                plain = net.plain_block(self.num_layers(n), n in transitions)
                starts, num_waiting = n == num_fused + 1, len(self.scales) - 1 - i
                stages.append(Stage(None if stages else stem, fusion if starts else [], plain, starts, num_waiting))
                widths.append(net.channels)
            below = net
        return stages, widths


@builder
def ranet(
    *,
    num_classes: int = 100,
    damping: bool = False,
    blocks: int = 2,
    block_step: int = 2,
    scales: Sequence[int] = (1, 2, 3),
    growth_factors: Sequence[int] = (4, 2, 1),
    bottleneck_factors: Sequence[int] | None = None,
    channels: int = 16,
    growth: int = 6,
    step: int = 2,
    step_mode: Literal["lg", "even"] = "lg",
    compress: float = 0.25,
    reduction: float = 0.5,
    stem: StemKind = "cifar",
    head_channels: int | None = 128,
    image_size: int | Sequence[int] = 32,
    in_channels: int = 3,
) -> EarlyExitNet:
    """RANet with K = `blocks + block_step * (S - 1)` exits; the defaults are RANet-6 for CIFAR-100.

    Args:
        num_classes, damping: N, and whether each exit has one more output, the damping neuron.
        blocks, block_step: Blocks of the first sub-network, and how many each further one has more.
        scales: Scale of each sub-network, lowest resolution (1) first; equal neighbours share a resolution.
        growth_factors, channels, growth: Channels of the stem, and what a layer adds, each times the factor.
        bottleneck_factors: How much wider the 1 x 1 units are than what follows (default: the growth factors).
        step, step_mode: Layers of block n (from 1): `step` (`even`) or `step * n` (`lg`).
        compress: Share of a fusion layer's new channels that comes from the sub-network below.
        reduction: Factor of the transitions' channels.
        stem: The finest map has the images' side (`cifar`) or a quarter of it (`imagenet`).
        head_channels: Width of the exits; None: that of the map they read.
        image_size, in_channels: Side of the images, or height and width, and their channels.

    Raises:
        UsageError: For arguments that contradict each other, and images whose coarsest map no exit can read.
    """
    bottlenecks = growth_factors if bottleneck_factors is None else bottleneck_factors
    trunk = _Trunk(
        blocks, block_step, scales, growth_factors, bottlenecks, channels, growth, step, step_mode, compress, reduction
    )
    strides = [fine - coarse + 1 for fine, coarse in itertools.pairwise(reversed(scales))]
    first = Stem(stem, in_channels, [channels * factor for factor in reversed(growth_factors)], strides)
    height, width = check_image_size("RANet", image_size, stem, scales[-1])
    stages, widths = trunk.stages(first)
    exits = heads(widths, num_classes, damping, head_channels)
    _initialise([*(stage.fusion for stage in stages), *(stage.plain for stage in stages), *exits])
    return EarlyExitNet(
        stages, exits, num_classes=num_classes, damping=damping, image_shape=(in_channels, height, width)
    )


def _initialise(modules: Sequence[nn.Module]) -> None:
    """What the original's initialiser does to sub-networks and heads. It leaves the stem at the library's defaults."""
    for module in itertools.chain.from_iterable(m.modules() for m in modules):
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            nn.init.normal_(module.weight, std=math.sqrt(2 / (height * width * module.out_channels)))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
