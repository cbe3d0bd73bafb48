"""A stage or an exit in evaluation mode as a list of steps: batch norm folded, convolutions packed, joins without work.

B images, R pixels of all images, I and O channels in and out.
"""

import copy
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from offramp.fast.kernels import Library
from offramp.fast.layout import Cut, Fused, Layout
from offramp.fast.packing import PackedConv, is_product
from offramp.fast.placing import Copy, Region, Slab
from offramp.fast.steps import Copying, Pass
from offramp.fast.tracing import Call, Traced, UntraceableError, anybody_hears, call, is_usual_conv

FRESH = (operator.add, operator.mul, torch.add, torch.mul, torch.cat)  # what gives memory that nobody else reads
FRESH_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


@dataclass(frozen=True)
class Chain:
    """A convolution with the batch norm and the ReLU behind it, as far as there are any."""

    nodes: tuple[fx.Node, ...]
    source: fx.Node
    conv: nn.Conv2d
    """Folded."""
    relu: bool


class Planned(nn.Module):
    """A stage or an exit in evaluation mode on a CPU: a plan for each shape of its maps.

    Args:
        part: Not changed.
        dtype: What it is to compute in. Batch norm is folded in the type that the part has.
        fold: Whether batch norm goes into the convolution before it.
        otherwise: Makes of a copy of the part what is run where it cannot be run as a plan.
    """

    def __init__(
        self, part: nn.Module, *, dtype: torch.dtype, fold: bool, otherwise: Callable[[nn.Module], nn.Module]
    ) -> None:
        super().__init__()
        self.exact, self.fold, self.otherwise = part, fold, otherwise
        self.part = part if _is_all_of(part, dtype) else copy.deepcopy(part).to(dtype)
        self.why_not: str | None = None
        """Why the part is not run as a plan, once it was called."""
        self._plans: dict[Any, InferencePlan] = {}
        self._instead: nn.Module | None = None

    def forward(self, *maps: Tensor) -> Any:
        """What the part gives."""
        if self._instead is None:
            key = tuple((x.shape[1:], x.dtype) for x in maps)
            if key not in self._plans:
                self._plan(key, maps)
            plan = self._plans.get(key)
            if plan is not None:
                given = plan(maps)
                return given if plan.gives_tuple else given[0]
        assert self._instead is not None
        return self._instead(*maps)

    def _plan(self, key: Any, maps: Sequence[Tensor]) -> None:
        try:
            self._plans[key] = InferencePlan(self.part, maps, exact=self.exact if self.fold else None)
        except UntraceableError as error:
            self.why_not, self._instead = str(error), self.otherwise(copy.deepcopy(self.exact))


class InferencePlan:
    """How a part is run, for maps of the shapes and type of those given.

    1 x 1 convolutions are matrix products of rows, those that read the same map are one; other convolutions are packed;
    maps that are joined lie side by side from the start.

    Args:
        part: A stage or an exit, in evaluation mode, on a CPU.
        maps: What it is called with later.
        exact: The part in its own precision, to fold batch norm into the convolution before it; None: not to.

    Raises:
        UntraceableError: It cannot be run in this form, or would gain nothing by it.
    """

    def __init__(self, part: nn.Module, maps: Sequence[Tensor], *, exact: nn.Module | None) -> None:
        if anybody_hears(part.modules()):
            raise UntraceableError("somebody listens to its modules")
        traced = Traced(part, maps)
        found = list(_chains(traced, exact))
        if not found:
            raise UntraceableError("there is no convolution to be packed")
        self.dtype = maps[0].dtype
        if any(traced.results[chain.nodes[-1]].dtype != self.dtype for chain in found):
            raise UntraceableError("it computes in several types")
        self.inputs, self.outputs, self.gives_tuple = traced.inputs, traced.outputs, traced.gives_tuple
        layout = Layout(traced, {chain.nodes[0]: chain.nodes for chain in found})
        self.slabs, self.regions = layout.slabs, layout.regions
        self.steps = list(self._steps(traced, layout, found))
        self.slabs_over, self.values_over = self._over()

    def __call__(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the part gives."""
        run = Pass(self.slabs, self.dtype, Library())
        for node, x in zip(self.inputs, maps, strict=True):
            run.give(node, self.regions.get(node), x)
        for step, slabs, nodes in zip(self.steps, self.slabs_over, self.values_over, strict=True):
            step(run)
            for slab in slabs:
                run.maps[slab] = None
            for node in nodes:
                del run.values[node]
        return tuple(run.result(node, self.regions.get(node)) for node in self.outputs)

    def _steps(self, traced: Traced, layout: Layout, found: Sequence[Chain]) -> Iterator["_Step"]:
        groups = {group[0].nodes[0]: group for group in _groups(found)}
        for turn in layout.turns:
            if isinstance(turn, Fused):
                if turn.first in groups:
                    yield self._together(groups[turn.first])
            elif isinstance(turn, Copy):
                yield _Copying(turn.source, turn.target)
            elif not isinstance(turn, Cut):
                for node in turn:
                    _check(traced, node, self.regions, self.slabs)
                    yield _Alone(traced.root, node, {n: self.regions.get(n) for n in (node, *node.all_input_nodes)})

    def _together(self, group: Sequence[Chain]) -> "_Step":
        source, first = self.regions[group[0].source], group[0]
        targets = [(chain.nodes[-1], self.regions[chain.nodes[-1]]) for chain in group]
        if is_product(first.conv):
            return _Product(source, targets, [chain.conv for chain in group], first.relu)
        return _Convolution(source, *targets[0], PackedConv(first.conv, first.relu))

    def _over(self) -> tuple[list[list[int]], list[list[fx.Node]]]:
        """After each step: the slabs, and what is no map, that nobody reads any more."""
        slabs: dict[int, int] = {}
        values: dict[fx.Node, int] = {}
        for number, step in enumerate(self.steps):
            for node, region in step.touches():
                if region is not None:
                    slabs[region.slab] = number
                elif node is not None:
                    values[node] = number
        for node in self.outputs:
            region = self.regions.get(node)
            if region is not None:
                slabs.pop(region.slab, None)
            values.pop(node, None)
        numbers = range(len(self.steps))
        return (
            [[slab for slab, last in slabs.items() if last == number] for number in numbers],
            [[node for node, last in values.items() if last == number] for number in numbers],
        )


class _Step(Protocol):
    def __call__(self, run: Pass) -> None: ...

    def touches(self) -> Iterator[tuple[fx.Node | None, Region | None]]: ...


class _Copying(Copying):
    """The step of training, forward alone."""

    def __call__(self, run: Pass) -> None:
        self.forward(run)

    def touches(self) -> Iterator[tuple[fx.Node | None, Region | None]]:
        yield None, self.source
        yield None, self.target


@dataclass(frozen=True)
class _Convolution:
    source: Region
    node: fx.Node
    target: Region
    conv: PackedConv

    def __call__(self, run: Pass) -> None:
        given_BCHW = self.conv(run.read(self.source).permute(0, 3, 1, 2))
        run.put(self.node, self.target, given_BCHW.permute(0, 2, 3, 1))

    def touches(self) -> Iterator[tuple[fx.Node | None, Region | None]]:
        yield None, self.source
        yield self.node, self.target


class _Product:
    """1 x 1 convolutions of one map, as one matrix product of its rows."""

    def __init__(
        self, source: Region, targets: Sequence[tuple[fx.Node, Region]], convs: Sequence[nn.Conv2d], relu: bool
    ) -> None:
        self.source, self.targets = source, targets
        weight_OI = torch.cat([conv.weight.detach().flatten(1) for conv in convs])
        zeros = [conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias.detach() for conv in convs]
        self.weight_IO, self.bias_O = weight_OI.contiguous().t(), torch.cat(zeros)
        self.product = torch._addmm_activation if relu else torch.addmm  # the activation is ReLU
        self.firsts = [0, *itertools.accumulate(len(conv.weight) for conv in convs[:-1])]

    def __call__(self, run: Pass) -> None:
        x_BHWC = run.read(self.source)
        batch, height, width, _ = x_BHWC.shape
        given_BHWO = self.product(self.bias_O, x_BHWC.flatten(0, 2), self.weight_IO).view(batch, height, width, -1)
        if len(self.targets) == 1:
            run.put(*self.targets[0], given_BHWO)
            return
        for (node, region), first in zip(self.targets, self.firsts, strict=True):
            run.put(node, region, given_BHWO.narrow(-1, first, region.width))

    def touches(self) -> Iterator[tuple[fx.Node | None, Region | None]]:
        yield None, self.source
        yield from self.targets


@dataclass(frozen=True)
class _Alone:
    """Any other operation, as it is."""

    root: nn.Module
    node: fx.Node
    regions: dict[fx.Node, Region | None]
    """Where what it reads and gives lies, of each that is a map."""

    def __call__(self, run: Pass) -> None:
        env = {node: run.result(node, region) for node, region in self.regions.items() if node is not self.node}
        run.give(self.node, self.regions[self.node], call(self.root, self.node, env))

    def touches(self) -> Iterator[tuple[fx.Node | None, Region | None]]:
        yield from self.regions.items()


def _chains(traced: Traced, exact: nn.Module | None) -> Iterator[Chain]:
    """The convolutions of a part, in order, each with what can be computed with it."""
    calls = traced.calls()
    for first in traced.nodes:
        conv, source = traced.module(first), next(iter(first.args), None)
        if not is_usual_conv(conv) or len(first.args) != 1 or not traced.is_map(source):
            continue
        assert isinstance(source, fx.Node)
        nodes, after = [first], traced.only_reader(first)
        norm = None if after is None else traced.module(after)
        if exact is not None and after is not None and _can_fold(norm) and calls[first.target] == 1:
            conv = _folded(Call(exact), first, after).to(conv.weight.dtype)
            nodes.append(after)
            after = traced.only_reader(after)
        relu = after is not None and traced.is_relu(after)
        yield Chain((*nodes, after) if after is not None and relu else tuple(nodes), source, conv, relu)


def _folded(root: nn.Module, conv: fx.Node, norm: fx.Node) -> nn.Conv2d:
    modules: list[Any] = [root.get_submodule(str(node.target)) for node in (conv, norm)]
    folded: nn.Conv2d = fuse_conv_bn_eval(*modules)
    return folded


def _can_fold(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) is nn.BatchNorm2d and not module.training and module.running_mean is not None


def _groups(found: Sequence[Chain]) -> list[list[Chain]]:
    """Chains that run as one, at the place of the first: matrix products of the same map."""
    groups: dict[Any, list[Chain]] = {}
    for chain in found:
        alike = (chain.source, chain.relu) if is_product(chain.conv) else chain
        groups.setdefault(alike, []).append(chain)
    return list(groups.values())


def _check(traced: Traced, node: fx.Node, regions: Mapping[fx.Node, Region], slabs: Sequence[Slab]) -> None:
    """Refuse what cannot run by itself. What writes into memory that it alone reads may do so."""
    try:
        traced.check_alone(node)
    except UntraceableError:
        source = node.all_input_nodes[0] if traced.is_relu(node) else None
        if source is None or traced.only_reader(source) is not node or not _is_fresh(traced, source):
            raise
        if source in regions and slabs[regions[source].slab].home is not source:
            raise


def _is_all_of(part: nn.Module, dtype: torch.dtype) -> bool:
    return all(x.dtype == dtype for x in (*part.parameters(), *part.buffers()) if x.is_floating_point())


def _is_fresh(traced: Traced, node: fx.Node) -> bool:
    """Whether a node gives memory of its own."""
    return node.target in FRESH or type(traced.module(node)) in FRESH_MODULES
