"""A stage or an exit in evaluation mode as a list of steps: batch norm folded, convolutions packed, joins without work.

B images, R pixels of all images, I and O channels in and out.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from offramp.fast.forward import Alone, Convolution, Copying, Places, Product, Run, Step
from offramp.fast.layout import Cut, Fused, Layout
from offramp.fast.packing import is_product
from offramp.fast.placing import Copy, Region, Slab
from offramp.fast.tracing import Call, Traced, UntraceableError, anybody_hears, is_usual_conv

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
        self.gives_tuple = traced.gives_tuple
        layout = Layout(traced, {chain.nodes[0]: chain.nodes for chain in found})
        self.slabs, self.regions = layout.slabs, layout.regions
        places = Places(layout.regions, layout.slabs)
        self.targets = [places.target(node) for node in traced.inputs]
        self.steps = list(self._steps(traced, layout, found, places))
        self.sources = [places.source(node) for node in traced.outputs]
        places.settle()
        self.size = len(places)
        self.over = self._over()

    def __call__(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the part gives."""
        run = Run(self.size, self.dtype)
        for target, x in zip(self.targets, maps, strict=True):
            target.put(run, x)
        for step, over in zip(self.steps, self.over, strict=True):
            step(run)
            for number in over:
                run.drop(number)
        return tuple([source.read(run) for source in self.sources])

    def _steps(self, traced: Traced, layout: Layout, found: Sequence[Chain], places: Places) -> Iterator[Step]:
        groups = {group[0].nodes[0]: group for group in _groups(found)}
        for turn in layout.turns:
            if isinstance(turn, Fused):
                if turn.first in groups:
                    yield _together(groups[turn.first], places)
            elif isinstance(turn, Copy):
                yield Copying(places.source(turn.source), places.target(turn.target))
            elif not isinstance(turn, Cut):
                for node in turn:
                    _check(traced, node, self.regions, self.slabs)
                    yield Alone(traced, node, places)

    def _over(self) -> list[list[int]]:
        """After each step: the slabs, and what is no map, that nobody reads any more."""
        last = {number: i for i, step in enumerate(self.steps) for number in step.touches()}
        for source in self.sources:
            last.pop(source.number, None)
        over: list[list[int]] = [[] for _ in self.steps]
        for number, i in last.items():
            over[i].append(number)
        return over


def _together(group: Sequence[Chain], places: Places) -> Step:
    source, first = places.source(group[0].source), group[0]
    targets = [places.target(chain.nodes[-1]) for chain in group]
    if is_product(first.conv):
        return Product(source, targets, [chain.conv for chain in group], first.relu)
    return Convolution(source, targets[0], first.conv, first.relu)


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
