"""A stage or an exit as a list of steps, run forward and backward as one operation of autograd."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.errors import UsageError
from offramp.fast.kernels import Kernels
from offramp.fast.layout import Cut, Fused, Layout
from offramp.fast.placing import Copy
from offramp.fast.steps import Copying, Cutting, Kept, Pass, Segment, Step, Units
from offramp.fast.tracing import Traced, Unit, UntraceableError


class Plan:
    """How a part is run, for maps of the shapes of those given.

    Args:
        part: A stage or an exit, in training mode.
        maps: What it is called with, and under autocast or not, as later.

    Raises:
        UntraceableError: It cannot be run in this form, or would gain nothing by it.
    """

    def __init__(self, part: nn.Module, maps: Sequence[Tensor]) -> None:
        traced = Traced(part, maps)
        units = list(traced.units())
        if not units:
            raise UntraceableError("there is no convolution, batch norm and ReLU in a row")
        self.dtype = traced.results[units[0].last].dtype
        if any(traced.results[unit.last].dtype != self.dtype for unit in units):
            raise UntraceableError("it computes in several types")
        self.parameters = tuple(part.parameters())
        self.inputs, self.outputs, self.gives_tuple = traced.inputs, traced.outputs, traced.gives_tuple
        layout = _Layout(traced, units)
        self.slabs, self.regions = layout.slabs, layout.regions
        self.steps: list[Step] = layout.steps

    def __call__(self, maps: Sequence[Tensor], kernels: Kernels) -> tuple[Tensor, ...]:
        """What the part gives; gradients go to the maps and to its parameters."""
        number = {node: i for i, node in enumerate(self.inputs)}
        computed = list(dict.fromkeys(node for node in self.outputs if node not in number))
        results = _Autograd.apply(  # type: ignore[no-untyped-call]
            self, kernels, computed, *maps, *self.parameters
        )
        given = dict(zip(computed, results, strict=True))
        return tuple(maps[number[node]] if node in number else given[node] for node in self.outputs)

    def forward(self, run: Pass, maps: Sequence[Tensor]) -> list[Kept]:
        """Run the steps; gives what each has to keep."""
        for node, x in zip(self.inputs, maps, strict=True):
            run.give(node, self.regions.get(node), x)
        kept = [step.forward(run) for step in self.steps]
        self._move_averages(kept)
        return kept

    def backward(self, run: Pass, kept: Sequence[Kept]) -> None:
        """Run the steps backward."""
        for step, own in zip(reversed(self.steps), reversed(kept), strict=True):
            step.backward(run, own)

    def _move_averages(self, kept: Sequence[Kept]) -> None:
        """The running averages of all norms, as each would move its own."""
        by_momentum: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        counts = []
        for step, own in zip(self.steps, kept, strict=True):
            for norm, mean_C, variance_C in step.statistics(own) if isinstance(step, Units) else ():
                averages, values = by_momentum.setdefault(norm.momentum or 0.0, ([], []))
                assert norm.running_mean is not None
                assert norm.running_var is not None
                averages += [norm.running_mean, norm.running_var]
                is_alike = mean_C.dtype == norm.running_mean.dtype
                values += (
                    (mean_C, variance_C) if is_alike else (x.to(norm.running_mean.dtype) for x in (mean_C, variance_C))
                )
                counts += [count for count in (norm.num_batches_tracked,) if count is not None]
        for momentum, (averages, values) in by_momentum.items():
            torch._foreach_lerp_(averages, values, momentum)
        torch._foreach_add_(counts, 1)


class _Layout:
    """Turns a traced part into steps on slabs."""

    def __init__(self, traced: Traced, units: Sequence[Unit]) -> None:
        self.traced = traced
        groups = _groups(units)
        leaders = {unit.first: unit for unit in groups}
        layout = Layout(traced, {unit.first: (unit.first, *_between(unit)) for unit in units})
        self.slabs, self.regions = layout.slabs, layout.regions
        self.steps: list[Step] = []
        for turn in layout.turns:
            if isinstance(turn, Fused):
                self.steps += [self._units(groups[leaders[turn.first]])] if turn.first in leaders else []
            elif isinstance(turn, Copy):
                self.steps.append(Copying(turn.source, turn.target))
            elif isinstance(turn, Cut):
                self.steps.append(Cutting(turn.source, turn.target))
            else:
                for node in turn:
                    traced.check_alone(node)
                self.steps.append(self._segment(turn))

    def _units(self, group: Sequence[Unit]) -> Units:
        return Units(
            source=self.regions[group[0].source],
            targets=[self.regions[unit.last] for unit in group],
            convs=[unit.conv for unit in group],
            norms=[unit.norm for unit in group],
            is_pointwise=group[0].is_pointwise,
        )

    def _segment(self, nodes: Sequence[fx.Node]) -> Segment:
        inside, outputs = set(nodes), set(self.traced.outputs)
        sources = dict.fromkeys(read for node in nodes for read in node.all_input_nodes if read not in inside)
        results = [node for node in nodes if node in outputs or any(user not in inside for user in node.users)]
        modules = [module for node in nodes if (module := self.traced.module(node)) is not None]
        attributes = [self.traced.attribute(node) for node in nodes if node.op == "get_attr"]
        return Segment(
            nodes=nodes,
            sources=list(sources),
            results=results,
            regions={node: self.regions[node] for node in (*sources, *results) if node in self.regions},
            root=self.traced.root,
            modules=modules,
            attributes=[a for a in attributes if isinstance(a, nn.Parameter)],
        )


def _between(unit: Unit) -> Iterator[fx.Node]:
    """The nodes of a unit after its first."""
    (norm,) = unit.first.users
    yield norm
    yield unit.last


def _groups(units: Sequence[Unit]) -> dict[Unit, list[Unit]]:
    """Units that run as one, under the first of them: 1 x 1 units that read the same map."""
    leaders: dict[Any, Unit] = {}
    groups: dict[Unit, list[Unit]] = {}
    for unit in units:
        alike = (unit.source, unit.norm.eps) if unit.is_pointwise else unit
        leader = leaders.setdefault(alike, unit)
        groups.setdefault(leader, []).append(unit)
    return groups


class _Autograd(torch.autograd.Function):
    """A plan as one operation. Tensors are kept through autograd, which frees them when the backward pass is over."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, kernels: Kernels, outputs: list[fx.Node], *tensors: Tensor) -> tuple[Tensor, ...]:
        maps = tensors[: len(plan.inputs)]
        run = Pass(plan.slabs, plan.dtype, kernels)
        kept = plan.forward(run, maps)
        flat = [*run.maps, *itertools.chain.from_iterable(kept)]
        ctx.plan, ctx.kernels, ctx.outputs, ctx.sizes = plan, kernels, outputs, [*map(len, kept)]
        ctx.others = [None if isinstance(item, Tensor) else item for item in flat]
        ctx.save_for_backward(*(item if isinstance(item, Tensor) else None for item in flat))
        ctx.set_materialize_grads(False)
        return tuple(run.result(node, plan.regions.get(node)) for node in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        if torch.is_grad_enabled():  # with `create_graph`
            raise UsageError("Gradients of a merged form cannot be differentiated again; use form plain.")
        flat = iter(
            other if tensor is None else tensor for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
        )
        run = Pass(plan.slabs, plan.dtype, ctx.kernels)
        run.maps = list(itertools.islice(flat, len(plan.slabs)))
        kept = [tuple(itertools.islice(flat, size)) for size in ctx.sizes]
        wanted = ctx.needs_input_grad[3:]
        for node, is_wanted in zip(plan.inputs, wanted, strict=False):
            region = plan.regions.get(node)
            if region is not None and not is_wanted and plan.slabs[region.slab].home is node:
                run.frozen_slabs.add(region.slab)
        for node, gradient in zip(ctx.outputs, gradients, strict=True):
            if gradient is not None:
                run.add_node_gradient(node, plan.regions.get(node), gradient)
        plan.backward(run, kept)
        found = [
            run.node_gradient(node, plan.regions.get(node)) if is_wanted else None
            for node, is_wanted in zip(plan.inputs, wanted, strict=False)
        ]
        return None, None, None, *found, *(run.parameter_gradients.get(p) for p in plan.parameters)
