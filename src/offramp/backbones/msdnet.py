"""MSDNet: densely connected layers on maps of several scales at once (Huang et al., ICLR 2018).

S scales, the finest first; scale s carries `base * growth_factors[s]` channels, with one common `base` that grows by
`growth` a layer. Layers are numbered from 1 to n through the whole network. Operations, parameters and initialisation
are those of the original program; the initialiser it defines never reaches a layer there, so the library's stands.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

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
from offramp.checks import check_choice, check_flags, check_number, check_whole
from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet, builder


class Growth(nn.Module):
    """One scale of a layer: its map with new channels appended, from the next finer map (`down`) and from itself."""

    def __init__(self, same: nn.Module, down: nn.Module | None = None) -> None:
        super().__init__()
        self.down = down
        self.same = same

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        """The grown map; `finer` is read where there is a `down`."""
        new = [self.same(x)] if self.down is None else [self.down(finer), self.same(x)]
        return torch.cat([x, *new], dim=1)


class Layer(nn.Module):
    """One layer on several scales; it may discard finest ones, whose maps it still reads.

    Args:
        base: Common number of channels before the layer.
        growth: What the layer adds to it.
        factors: Growth factor of each scale that comes in, finest first.
        bottlenecks: Bottleneck factor of each of them (None: no bottleneck).
        num_discarded: How many of them, the finest, do not go on.
        num_after: Layers that follow in the network. Exits read the coarsest scale, and a layer hands on one scale
            down: finer ones than these reach have no reader.
    """

    def __init__(
        self,
        base: int,
        growth: int,
        factors: Sequence[int],
        bottlenecks: Sequence[int | None],
        num_discarded: int,
        num_after: int,
    ) -> None:
        super().__init__()
        self.num_after = num_after
        self.scales = nn.ModuleList()
        for i in range(num_discarded, len(factors)):
            here, new = base * factors[i], growth * factors[i]
            if i == 0:
                self.scales.append(Growth(branch(here, new, bottlenecks[i])))
            else:
                same = branch(here, new // 2, bottlenecks[i])
                down = branch(base * factors[i - 1], new // 2, bottlenecks[i - 1], stride=2)
                self.scales.append(Growth(same, down))

    def forward(self, *maps: Tensor) -> Carry:
        """The grown maps of the scales that go on."""
        first = len(maps) - len(self.scales)
        if self.training and torch.compiler.is_dynamo_compiling():
            return self._merged(maps, first)
        return tuple(scale(maps[i], maps[i - 1] if i else None) for i, scale in enumerate(self.scales, first))

    def _merged(self, maps: Carry, first: int) -> Carry:
        """The same for a compiler, 1 x 1 units that read the same map merged: one wide unit is faster than two.

        Not where the finer scale has no reader: merged, its unit would get gradients, though only zeros.
        """
        scales: Sequence[Any] = list(self.scales)
        grown: list[Tensor] = []
        finer: Tensor | None = None  # what the first unit of `down` makes of its map, where that was merged
        for i, scale in enumerate(scales, first):
            parts = [maps[i]]
            if scale.down is not None:
                parts.append(scale.down(maps[i - 1]) if finer is None else scale.down[1](finer))
            coarser = scales[i + 1 - first].down if i + 1 < len(maps) else None
            is_read = len(maps) - 1 - i <= self.num_after
            if coarser is not None and is_read and _can_merge(scale.same, coarser):
                narrow, finer = _merged_units(maps[i], scale.same[0], coarser[0])
                parts.append(scale.same[1](narrow))
            else:
                parts.append(scale.same(maps[i]))
                finer = None
            grown.append(torch.cat(parts, dim=1))
        return tuple(grown)


def _can_merge(same: nn.Sequential, down: nn.Sequential) -> bool:
    """Whether both branches begin with a 1 x 1 unit, and the batch norms of these train alike."""
    units: Sequence[Any] = [same[0], down[0]]
    if not all(unit.conv.kernel_size == (1, 1) for unit in units):
        return False
    one, other = ((n.training, n.track_running_stats, n.momentum, n.eps) for n in (unit.norm for unit in units))
    return one == other and one[0] and one[1] and one[2] is not None


def _merged_units(x: Tensor, one: Unit, other: Unit) -> tuple[Tensor, Tensor]:
    """What two 1 x 1 units that train make of a map, by one convolution and one batch norm, each channel as before."""
    norms = one.norm, other.norm
    sizes = [norm.num_features for norm in norms]
    mean, var, gain, shift = (
        torch.cat([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var", "weight", "bias")
    )
    y = nn.functional.conv2d(x, torch.cat([one.conv.weight, other.conv.weight]))
    y = nn.functional.batch_norm(y, mean, var, gain, shift, True, norms[0].momentum or 0.0, norms[0].eps)
    for norm, own_mean, own_var in zip(norms, torch.split(mean, sizes), torch.split(var, sizes), strict=True):
        for kept, new in ((norm.running_mean, own_mean), (norm.running_var, own_var)):
            assert kept is not None
            kept.copy_(new)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
    first, second = torch.split(y.relu(), sizes, dim=1)
    return first, second


class Transition(nn.Module):
    """A 1 x 1 unit on every scale, from `base` to `new_base` common channels."""

    def __init__(self, base: int, new_base: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(Unit(base * factor, new_base * factor, 1) for factor in factors)

    def forward(self, *maps: Tensor) -> Carry:
        """One map for each."""
        return tuple(scale(x) for scale, x in zip(self.scales, maps, strict=True))


class Stage(nn.Module):
    """A block: layers and transitions in turn, the stem before the first ones.

    Its carry holds the surviving scales, finest first; the exit reads the last, the coarsest. After the last stage
    nothing is left but that one.
    """

    def __init__(self, parts: Sequence[nn.Module], is_last: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.is_last = is_last

    def forward(self, *maps: Tensor) -> Carry:
        """The next carry; `maps` are the images or the scales that survived the stage before."""
        for part in self.parts:
            maps = part(*maps)
        return maps[-1:] if self.is_last else maps


@dataclass(frozen=True)
class _Trunk:
    """The knobs that decide what stands between the stem and the exits."""

    layers_per_block: Sequence[int]
    channels: int
    growth: int
    factors: Sequence[int]
    bottlenecks: Sequence[int]
    has_bottlenecks: bool
    prune: str
    reduction: float

    def __post_init__(self) -> None:
        for name in ("channels", "growth"):
            check_whole(name, getattr(self, name), 1, MOST_CHANNELS)
        check_lists(growth_factors=self.factors, bottleneck_factors=self.bottlenecks)
        check_choice("prune", self.prune, ("max", "min"))
        check_number("reduction", self.reduction, "between 0 and 1", lambda share: 0 <= share <= 1)
        for factor in self.factors[1:]:
            if self.growth * factor % 2:
                raise UsageError(
                    f"Every scale but the finest grows from two branches of equal width, so growth times its factor "
                    f"must be even; found growth={self.growth}, growth_factors={tuple(self.factors)}."
                )

    def blocks(self) -> tuple[list[list[nn.Module]], list[int]]:
        """The layers and transitions of each block, and the number of common channels after each block."""
        base, num_scales = self.channels, len(self.factors)
        bottlenecks = self.bottlenecks if self.has_bottlenecks else [None] * num_scales
        numbers = itertools.count(1)
        blocks, bases = [], []
        for num_layers in self.layers_per_block:
            parts: list[nn.Module] = []
            for number in itertools.islice(numbers, num_layers):
                num_discarded = num_scales - self.scales_after(number)
                factors, own_bottlenecks = self.factors[-num_scales:], bottlenecks[-num_scales:]
                num_after = sum(self.layers_per_block) - number
                parts.append(Layer(base, self.growth, factors, own_bottlenecks, num_discarded, num_after))
                base, num_scales = base + self.growth, num_scales - num_discarded
                if self.has_transition(number, num_discarded):
                    new_base = math.floor(self.reduction * base)  # the floor is taken before the factors come in
                    if new_base < 1:
                        raise UsageError(
                            f"reduction={self.reduction} leaves no channels of {base}; raise it, or use 0."
                        )
                    parts.append(Transition(base, new_base, self.factors[-num_scales:]))
                    base = new_base
            blocks.append(parts)
            bases.append(base)
        return blocks, bases

    def scales_after(self, number: int) -> int:
        """Number of scales that layer `number` hands on."""
        num_layers, num_scales = sum(self.layers_per_block), len(self.factors)
        if self.prune == "min":
            return min(num_scales, num_layers - number + 1)
        return num_scales - (number - 1) // math.ceil(num_layers / num_scales)

    def has_transition(self, number: int, num_discarded: int) -> bool:
        """Whether a transition follows layer `number`."""
        if self.reduction == 0:
            return False
        num_layers = sum(self.layers_per_block)
        return number in (num_layers // 3, 2 * num_layers // 3) if self.prune == "min" else num_discarded > 0


def _layers_per_block(exits: int, base: int, step: int, step_mode: str) -> list[int]:
    for name, value in (("exits", exits), ("base", base), ("step", step)):
        check_whole(name, value, 1, MOST_LAYERS)
    check_choice("step_mode", step_mode, ("lin_grow", "even"))
    layers = [base, *(step if step_mode == "even" else step * i + 1 for i in range(1, exits))]
    check_layers("MSDNet", sum(layers))
    return layers


@builder
def msdnet(
    *,
    exits: int = 7,
    num_classes: int = 100,
    damping: bool = False,
    base: int = 1,
    step: int = 1,
    step_mode: Literal["lin_grow", "even"] = "lin_grow",
    channels: int = 16,
    growth: int = 6,
    growth_factors: Sequence[int] = (1, 2, 4),
    bottleneck: bool = True,
    bottleneck_factors: Sequence[int] | None = None,
    prune: Literal["max", "min"] = "max",
    reduction: float = 0.5,
    stem: StemKind = "cifar",
    head_channels: int | None = 128,
    image_size: int | Sequence[int] = 32,
    in_channels: int = 3,
    last_only: bool = False,
) -> EarlyExitNet:
    """MSDNet with K = `exits`; the defaults are the paper's MSDNet-7 for CIFAR-100.

    Args:
        num_classes, damping: N, and whether each exit has one more output, the damping neuron.
        base, step, step_mode: Layers of the first block; of block i (from 0), `step` (`even`) or `step * i + 1`.
        channels, growth, growth_factors: Channels of the stem, and what a layer adds, each times the scale's factor.
            As many scales as factors, finest first.
        bottleneck, bottleneck_factors: Whether 1 x 1 units stand before the 3 x 3 of a layer, and how much wider they
            are than what follows, per scale (default: the growth factors).
        prune: Discard the finest scale after each S-th part of the layers (`max`), or as late as possible (`min`).
        reduction: Factor of the transitions' channels; 0: no transitions.
        stem: The finest map has the images' side (`cifar`) or a quarter of it (`imagenet`).
        head_channels: Width of the exits; None: that of the map they read.
        image_size, in_channels: Side of the images, or height and width, and their channels.
        last_only: Keep the last exit alone, on the same trunk, as one stage.

    Raises:
        UsageError: For arguments that contradict each other, and images whose coarsest map no exit can read.
    """
    bottlenecks = growth_factors if bottleneck_factors is None else bottleneck_factors
    check_flags(bottleneck=bottleneck, last_only=last_only)
    layers = _layers_per_block(exits, base, step, step_mode)
    trunk = _Trunk(layers, channels, growth, growth_factors, bottlenecks, bottleneck, prune, reduction)
    first = Stem(stem, in_channels, [channels * factor for factor in growth_factors], [2] * (len(growth_factors) - 1))
    height, width = check_image_size("MSDNet", image_size, stem, len(growth_factors))
    blocks, bases = trunk.blocks()
    blocks[0].insert(0, first)
    if last_only:
        blocks, bases = [[part for block in blocks for part in block]], bases[-1:]
    return EarlyExitNet(
        [Stage(parts, is_last=k == len(blocks) - 1) for k, parts in enumerate(blocks)],
        heads([base * growth_factors[-1] for base in bases], num_classes, damping, head_channels),
        num_classes=num_classes,
        damping=damping,
        image_shape=(in_channels, height, width),
    )
