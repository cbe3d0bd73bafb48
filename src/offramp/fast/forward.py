"""What a plan for inference consists of: convolutions, products, copies, and anything else as it is.

B images, R pixels of all images, I and O channels in and out. Maps are `[B, channels, height, width]`, with the
channels of a pixel side by side in memory. Whatever is the same in every call is found out when the plan is made: for
one image at a time, what a call of torch or a line of Python costs is what counts.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from offramp.fast.packing import PackedConv, PackedProduct
from offramp.fast.placing import Region, Slab
from offramp.fast.steps import allocated
from offramp.fast.tracing import Traced, call, draws


class Run:
    """What lies where during one call.

    Args:
        size: Of how many things: slabs, and what is no map.
        dtype: Of maps.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.held: list[Any] = [None] * size
        self.pieces: list[Any] = [None] * size  # of slabs, as they are written
        self.dtype = dtype

    def drop(self, number: int) -> None:
        """Let something go."""
        self.held[number] = self.pieces[number] = None


class Source:
    """Where something is read."""

    def __init__(self, number: int, region: Region | None, slab: Slab | None) -> None:
        self.number = number
        self.is_part = region is not None and slab is not None and region.width != slab.width
        self.first, self.width = (0, 0) if region is None else (region.first, region.width)

    def read(self, run: Run) -> Any:
        """What lies there."""
        whole = run.held[self.number]
        return whole.narrow(1, self.first, self.width) if self.is_part else whole

    def rows(self, run: Run) -> Tensor:
        """A map as `[R, I]`, without a copy where pixels are evenly spaced."""
        whole: Tensor = run.held[self.number]
        batch, _, height, width = whole.shape
        to_next_image, to_next_channel, to_next_row, to_next = whole.stride()
        if to_next_channel == 1 and to_next_row == width * to_next and to_next_image == height * to_next_row:
            size = (batch * height * width, self.width)
            return whole.as_strided(size, (to_next, 1), whole.storage_offset() + self.first)
        x: Tensor = self.read(run)
        return x.permute(0, 2, 3, 1).flatten(0, 2)


class Target:
    """Where something is written: a slab's own map becomes the slab, others are copied to their place in it."""

    def __init__(self, number: int, node: fx.Node | None, region: Region | None, slab: Slab | None) -> None:
        self.number, self.region, self.slab = number, region, slab
        self.is_own = slab is None or (node is not None and slab.home is node)
        self.piece = 0
        self.widths: list[int] = []  # of all pieces of the slab

    def put(self, run: Run, x: Any) -> None:
        """Bring something there."""
        if self.is_own:
            run.held[self.number] = x
            return
        pieces = run.pieces[self.number]
        if pieces is None:
            assert self.slab is not None
            whole = allocated(self.slab, len(x), run.dtype, x.device).permute(0, 3, 1, 2)
            run.held[self.number] = whole
            pieces = run.pieces[self.number] = whole.split_with_sizes(self.widths, 1)
        pieces[self.piece].copy_(x)


class Places:
    """Numbers for what lies somewhere during a call: slabs first, then what is no map."""

    def __init__(self, regions: dict[fx.Node, Region], slabs: Sequence[Slab]) -> None:
        self.regions, self.slabs = regions, slabs
        self.numbers: dict[fx.Node, int] = {}
        self.targets: list[Target] = []

    def __len__(self) -> int:
        return len(self.slabs) + len(self.numbers)

    def source(self, what: fx.Node | Region) -> Source:
        """Where a node's result, or a region, is read."""
        region = what if isinstance(what, Region) else self.regions.get(what)
        return Source(self._number(what, region), region, None if region is None else self.slabs[region.slab])

    def target(self, what: fx.Node | Region) -> Target:
        """Where a node's result, or a region, is written."""
        node, region = (None, what) if isinstance(what, Region) else (what, self.regions.get(what))
        slab = None if region is None else self.slabs[region.slab]
        self.targets.append(Target(self._number(what, region), node, region, slab))
        return self.targets[-1]

    def settle(self) -> None:
        """Cut each slab into the pieces that are written; to be called once when all targets are known."""
        written: dict[int, list[Target]] = {}
        for target in self.targets:
            if not target.is_own:
                written.setdefault(target.number, []).append(target)
        for targets in written.values():
            regions = sorted((t.region for t in targets if t.region is not None), key=lambda region: region.first)
            widths = [region.width for region in regions]
            assert [region.first for region in regions] == [0, *itertools.accumulate(widths[:-1])], "pieces are apart"
            for target in targets:
                assert target.region is not None
                target.piece, target.widths = regions.index(target.region), widths

    def _number(self, what: fx.Node | Region, region: Region | None) -> int:
        if region is not None:
            return region.slab
        assert isinstance(what, fx.Node)
        return self.numbers.setdefault(what, len(self))


class Step(Protocol):
    """One step of a plan."""

    def __call__(self, run: Run) -> None:
        """Compute."""

    def touches(self) -> Iterator[int]:
        """The numbers of what it reads and writes."""


@dataclass(frozen=True)
class Copying:
    """A map that lies in two slabs."""

    source: Source
    target: Target

    def __call__(self, run: Run) -> None:
        """See `Step`."""
        self.target.put(run, self.source.read(run))

    def touches(self) -> Iterator[int]:
        """See `Step`."""
        yield from (self.source.number, self.target.number)


class Convolution:
    """A packed convolution."""

    def __init__(self, source: Source, target: Target, conv: nn.Conv2d, relu: bool) -> None:
        self.source, self.target = source, target
        self.convolve = PackedConv(conv, relu).forward  # nobody hears of it: it need not be called as a module

    def __call__(self, run: Run) -> None:
        """See `Step`."""
        self.target.put(run, self.convolve(self.source.read(run)))

    def touches(self) -> Iterator[int]:
        """See `Step`."""
        yield from (self.source.number, self.target.number)


class Product:
    """1 x 1 convolutions of one map, as one matrix product of its rows."""

    def __init__(self, source: Source, targets: Sequence[Target], convs: Sequence[nn.Conv2d], relu: bool) -> None:
        self.source, self.targets = source, targets
        weight_OI = torch.cat([conv.weight.detach().flatten(1) for conv in convs])
        zeros = [conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias.detach() for conv in convs]
        self.product = PackedProduct(weight_OI, torch.cat(zeros), relu)
        self.widths = [len(conv.weight) for conv in convs]
        self.width = sum(self.widths)

    def __call__(self, run: Run) -> None:
        """See `Step`."""
        batch, _, height, width = run.held[self.source.number].shape
        given_RO = self.product(self.source.rows(run))
        pixel, row, image = self.width, width * self.width, height * width * self.width
        given_BOHW = given_RO.as_strided((batch, pixel, height, width), (image, 1, row, pixel))
        if len(self.targets) == 1:
            self.targets[0].put(run, given_BOHW)
            return
        for target, x in zip(self.targets, given_BOHW.split_with_sizes(self.widths, 1), strict=True):
            target.put(run, x)

    def touches(self) -> Iterator[int]:
        """See `Step`."""
        yield self.source.number
        yield from (target.number for target in self.targets)


class Alone:
    """Any other operation, as it is."""

    def __init__(self, traced: Traced, node: fx.Node, places: Places) -> None:
        self.root, self.node, self.target = traced.root, node, places.target(node)
        self.sources = {read: places.source(read) for read in node.all_input_nodes}
        module = traced.module(node)
        is_flat = not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
        what = node.target if module is None else module
        self.called: Callable[..., Any] | None = None
        if is_flat and node.op in ("call_module", "call_function") and not draws(what):
            self.called = what  # type: ignore[assignment]
        self.args = [self.sources[arg] for arg in node.args] if self.called is not None else []  # type: ignore[index]

    def __call__(self, run: Run) -> None:
        """See `Step`."""
        if self.called is not None:
            given = self.called(*[source.read(run) for source in self.args])
        else:
            given = call(self.root, self.node, {node: source.read(run) for node, source in self.sources.items()})
        self.target.put(run, given)

    def touches(self) -> Iterator[int]:
        """See `Step`."""
        yield self.target.number
        yield from (source.number for source in self.sources.values())
