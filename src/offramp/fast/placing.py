"""Where the maps of a traced part lie: in slabs, channels-last, so that joining maps moves nothing.

A slab is a map that is as wide as all that is ever appended to it. Its first channels are the map before an append, its
first channels and the next are the map after. Whatever produces a map writes into its region of a slab; what
concatenates, and what cuts out channels, is then no work at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, fx


@dataclass(frozen=True)
class Region:
    """Channels `first` to `first + width` of a slab."""

    slab: int
    first: int
    width: int

    def overlaps(self, other: "Region") -> bool:
        """Whether they have channels in common, of the same slab."""
        return self.first < other.first + other.width and other.first < self.first + self.width


@dataclass
class Slab:
    """What is known of one.

    Attributes:
        width: Its channels.
        sides: Height and width of the map.
        home: Node whose own tensor it can be; None where it must be allocated, because several maps lie in it.
    """

    width: int
    sides: tuple[int, ...]
    home: fx.Node | None


@dataclass(frozen=True)
class Copy:
    """A map that has to be copied to lie where it belongs: it is part of two slabs."""

    node: fx.Node
    source: Region
    target: Region


class Places:
    """Gives maps a place, one after the other, in the order in which they are computed."""

    def __init__(self) -> None:
        self._slabs: list[Slab] = []
        self._moved: dict[int, tuple[int, int]] = {}  # slab -> the slab it became part of, and its first channel there
        self._regions: dict[fx.Node, Region] = {}
        self._copies: list[tuple[fx.Node, Region, Region]] = []

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._regions

    def own(self, node: fx.Node, shape: Size) -> None:
        """A slab of its own, for now."""
        self._regions[node] = self._new(shape, node)

    def cut(self, node: fx.Node, source: fx.Node, first: int, width: int) -> None:
        """Some channels of a map that has its place."""
        region = self.region(source)
        self._regions[node] = Region(region.slab, region.first + first, width)

    def join(self, node: fx.Node, sources: Sequence[fx.Node], shape: Size) -> None:
        """Maps one after the other on the channel axis: the others come to lie behind the first, where that is free."""
        head, *others = sources
        region = self.region(head)
        if not self._is_whole(region):
            region, before = self._new(Size((shape[0], 0, *shape[2:])), None), region
            self._append(node, before, region.slab)
        for other in others:
            self._append(node, self.region(other), region.slab)
        self._slabs[region.slab].home = None
        self._regions[node] = Region(region.slab, 0, self._slabs[region.slab].width)

    def region(self, node: fx.Node) -> Region:
        """Where a map lies, as things stand."""
        return self._resolve(self._regions[node])

    def settle(self) -> tuple[list[Slab], dict[fx.Node, Region], list[Copy]]:
        """The slabs that are left, where each map lies, and what has to be copied when a node is reached."""
        kept = [i for i in range(len(self._slabs)) if i not in self._moved]
        number = {old: new for new, old in enumerate(kept)}

        def final(region: Region) -> Region:
            region = self._resolve(region)
            return Region(number[region.slab], region.first, region.width)

        regions = {node: final(region) for node, region in self._regions.items()}
        copies = [Copy(node, final(source), final(target)) for node, source, target in self._copies]
        return [self._slabs[i] for i in kept], regions, copies

    def _new(self, shape: Size, home: fx.Node | None) -> Region:
        self._slabs.append(Slab(shape[1], tuple(shape[2:]), home))
        return Region(len(self._slabs) - 1, 0, shape[1])

    def _append(self, node: fx.Node, region: Region, slab: int) -> None:
        """Put a map behind all others of a slab: by moving there the slab that it fills, or by a copy."""
        first = self._slabs[slab].width
        self._slabs[slab].width += region.width
        if region.slab != slab and self._is_whole(region):
            self._moved[region.slab] = (slab, first)
        else:
            self._copies.append((node, region, Region(slab, first, region.width)))

    def _is_whole(self, region: Region) -> bool:
        return region.first == 0 and region.width == self._slabs[region.slab].width

    def _resolve(self, region: Region) -> Region:
        while region.slab in self._moved:
            slab, first = self._moved[region.slab]
            region = Region(slab, region.first + first, region.width)
        return region
