"""A traced model in parts: what crosses a cut, and the graph of what lies between two of them.

B images. `torch.fx.passes.split_module` hands every value over that a later part reads. Dropping rows between
stages needs a carry of tensors with the images first and nothing else, so here:

- *Numbers* (sizes, dimensions) are written into the graph; those that grow with B are taken from the carry's own size.
- *Tensors that do not depend on the images* (position tables, masks) are made where they are read.
- *Dead values* are neither carried nor computed.
"""

import copy
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.errors import OfframpError
from offramp.graphs.in_place import changes_in_place
from offramp.graphs.interpreter import BATCHES, Shape
from offramp.graphs.tracing import Traced

_TRANSIENT = "offramp_transient"  # in `GraphModule.meta`, the one thing of an instance that a copy keeps


class GraphPart(fx.GraphModule):
    """A stage or the last exit. Buffers that the model keeps out of its state dict stay out of it, in copies too."""

    def keep_out(self, names: Iterable[str]) -> None:
        """Leave these buffers out of the state dict."""
        self.meta[_TRANSIENT] = tuple(names)
        for name in self.meta[_TRANSIENT]:
            home, _, own = name.rpartition(".")
            self.get_submodule(home)._non_persistent_buffers_set.add(own)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphPart":
        twin: GraphPart = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin.keep_out(self.meta[_TRANSIENT])
        return twin


@dataclass(frozen=True)
class Crossing:
    """What is still read after a place in the graph."""

    nodes: tuple[fx.Node, ...]
    """Their values make the carry."""
    why_not: str | None
    """Why they cannot, in words that follow "after `layer`"; None where they can."""


class Cutter:
    """Answers what crosses a place in the graph of a traced model, and takes out what lies between two places.

    A place i lies after `nodes[i]`.
    """

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.values = traced.values
        *self.nodes, self.output = [node for node in traced.graph.nodes if node.op != "placeholder"]
        (self.images,) = [node for node in traced.graph.nodes if node.op == "placeholder"]
        self.place = {self.images: -1} | {node: i for i, node in enumerate([*self.nodes, self.output])}
        self.depends = self._find_dependent()
        self.kept = self._find_kept()
        self._last_use = self._find_last_uses()
        self._weights = self._find_weights()

    def ends(self) -> dict[str, int]:
        """Of each module that is called, the place after its last operation."""
        ends = {}
        for i, node in enumerate(self.nodes):
            if node in self.kept:
                ends.update(dict.fromkeys(self.traced.owners[node], i))
        return ends

    def crossing(self, place: int) -> Crossing:
        """What crosses a place, in the order in which it was made."""
        nodes = [self.images, *self.nodes[: place + 1]]
        live = tuple(n for n in nodes if self.depends[n] and self._last_use.get(n, -1) > place)
        shared = sorted({name for name, first, last in self._weights if first <= place < last})
        if shared:
            return Crossing(live, f"the weights {shared[0]} are used both before and after it")
        why_not = next(filter(None, (_why_no_carry(self.values[node]) for node in live)), None)
        return Crossing(live, why_not and f"{why_not} would have to be carried")

    def part(self, after: int, until: int, reads: Sequence[fx.Node], gives: Sequence[fx.Node], own: bool) -> GraphPart:
        """The nodes after place `after` up to place `until` as a module from values of `reads` to those of `gives`.

        One value alone is given as it is, several as a tuple. With `own` what it reads is cloned first, because
        something in it writes there.
        """
        extraction = _Extraction(self, reads, own)
        for node in self.nodes[after + 1 : until + 1]:
            if node in self.kept and (self.depends[node] or changes_in_place(node)):
                extraction.copy(node)
        return extraction.finish(gives)

    def parameters_of(self, nodes: Iterable[fx.Node]) -> list[str]:
        """Names of the parameters that nodes use directly or as a module."""
        names: dict[str, None] = {}
        for node in nodes:
            if node.op == "call_module":
                module = self.traced.model.get_submodule(str(node.target))
                names.update((f"{node.target}.{name}", None) for name, _ in module.named_parameters())
            elif node.op == "get_attr":
                names[str(node.target)] = None
        return list(names)

    def independent_sources(self, node: fx.Node) -> list[fx.Node]:
        """The node and what it is made of, as far as that does not depend on the images."""
        sources, todo = [node], [node]
        while todo:
            for read in todo.pop().all_input_nodes:
                if not self.depends[read] and read not in sources and not _is_number(self.values[read]):
                    sources.append(read)
                    todo.append(read)
        return sources

    def _find_dependent(self) -> dict[fx.Node, bool]:
        """Whether a node gives a tensor (or several) that depends on the images."""
        depends = {self.images: True}
        for node in [*self.nodes, self.output]:
            reads = any(depends[n] for n in node.all_input_nodes)
            depends[node] = reads and (node.op == "output" or _has_tensor(self.values[node][0]))
        return depends

    def _find_kept(self) -> set[fx.Node]:
        """Nodes whose values are read, and those that do something besides giving a value."""
        kept = {self.output}
        for node in reversed([*self.nodes, self.output]):
            if node in kept or node.op == "call_module" or changes_in_place(node):
                kept |= {node, *(n for n in node.all_input_nodes if not self._is_written_out(n))}
        return kept

    def _is_written_out(self, node: fx.Node) -> bool:
        return _is_number(self.values[node]) and number(self.values[node]) is not None

    def _find_last_uses(self) -> dict[fx.Node, int]:
        places: dict[fx.Node, int] = {}
        for node in [*self.nodes, self.output]:
            if node in self.kept:
                places.update((read, self.place[node]) for read in node.all_input_nodes if self.depends[read])
        return places

    def _find_weights(self) -> list[tuple[str, int, int]]:
        """Each parameter with the first and the last place that reads it."""
        parameters = dict(self.traced.model.named_parameters(remove_duplicate=False))
        found: dict[int, tuple[str, list[int]]] = {}
        for node in self.nodes:
            if node not in self.kept or not self.depends[node]:
                continue
            sources = [s for n in node.all_input_nodes if not self.depends[n] for s in self.independent_sources(n)]
            for name in self.parameters_of([node, *sources]):
                if name in parameters:
                    found.setdefault(id(parameters[name]), (name, []))[1].append(self.place[node])
        return [(name, min(places), max(places)) for name, places in found.values()]


def number(values: Sequence[Any]) -> tuple[Any, Any] | None:
    """Of what is no tensor: what it is for no image and what each image adds; None where it is no such thing.

    A tuple has tuples of both.
    """
    first, second = values
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)) and len(first) == len(second):
        entries = [number(pair) for pair in zip(first, second, strict=True)]
        return None if None in entries else tuple(zip(*entries, strict=True)) or ((), ())
    if isinstance(first, (torch.device, torch.dtype)):
        return None
    if type(first) is type(second) and first == second:
        return first, 0
    if type(first) is int and type(second) is int:
        slope, rest = divmod(second - first, BATCHES[1] - BATCHES[0])
        return None if rest else (first - slope * BATCHES[0], slope)
    return None


def _is_number(values: Sequence[Any]) -> bool:
    return not _has_tensor(values[0])


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    return isinstance(value, Shape) or (isinstance(value, (tuple, list)) and any(map(_has_tensor, value)))


def _why_no_carry(values: Sequence[Any]) -> str | None:
    if not all(isinstance(value, Shape) for value in values):
        return "several tensors as one value"
    sizes = [value.sizes for value in values]
    if any(not size or size[0] != batch for size, batch in zip(sizes, BATCHES, strict=True)):
        return f"a tensor {list(sizes[0])} that does not have the images first"
    return None if sizes[0][1:] == sizes[1][1:] else f"a tensor {list(sizes[0])} whose sides grow with their number"


class _Extraction:
    """Copies nodes into a graph of their own."""

    def __init__(self, cutter: Cutter, reads: Sequence[fx.Node], own: bool) -> None:
        self.cutter = cutter
        self.graph = fx.Graph()
        names = ["images"] if reads == [cutter.images] else [f"carry_{i}" for i in range(len(reads))]
        self.inputs = [self.graph.placeholder(name) for name in names]
        sources = [self.graph.call_method("clone", (x,)) for x in self.inputs] if own else self.inputs
        self.copies: dict[fx.Node, fx.Node] = dict(zip(reads, sources, strict=True))
        self._num_images: fx.Node | None = None

    def copy(self, node: fx.Node) -> fx.Node:
        """A node, and what it reads that does not depend on the images."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        target = node.target
        if node.op == "call_method" and target in ("view", "view_as"):  # rows that were picked, or channels last
            target = str(target).replace("view", "reshape")
            if len(args) > 1 and isinstance(args[1], torch.dtype):
                target = "view"
        if target in ("reshape", "view", torch.reshape):
            args = self._without_guess(node, args)
        self.copies[node] = self.graph.create_node(node.op, target, args, kwargs, node.name)
        return self.copies[node]

    def _without_guess(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A side given as -1, as what it is: of no rows it cannot be guessed."""
        sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        if -1 not in sizes:
            return args
        first, second = self.cutter.values[node]
        per_image = number((first.sizes[sizes.index(-1)], second.sizes[sizes.index(-1)]))
        if per_image is None:
            return args
        side = self._written_out(per_image)
        return (args[0], tuple(side if size == -1 else size for size in sizes))

    def _value(self, node: fx.Node) -> Any:
        if node in self.copies:
            return self.copies[node]
        values = self.cutter.values[node]
        if _is_number(values):
            per_image = number(values)
            if per_image is not None:
                return self._written_out(per_image)
            is_here = all(read in self.copies for read in node.all_input_nodes)
            if isinstance(values[0], (torch.device, torch.dtype)) and not is_here:
                name = "device" if isinstance(values[0], torch.device) else "dtype"
                return self.graph.call_function(getattr, (self.inputs[0], name))
        elif self.cutter.depends[node]:
            raise OfframpError(f"{node.name} is read after a cut and not carried; this is a bug of offramp.")
        return self.copy(node)

    def _written_out(self, linear: tuple[Any, Any]) -> Any:
        base, slope = linear
        if isinstance(base, (tuple, list)):
            return tuple(self._written_out(pair) for pair in zip(base, slope, strict=True))
        if not slope:
            return base
        if self._num_images is None:
            with self.graph.inserting_after(self.inputs[-1]):
                self._num_images = self.graph.call_method("size", (self.inputs[0], 0))
        count = self._num_images
        scaled = count if slope == 1 else self.graph.call_function(operator.mul, (count, slope))
        return scaled if not base else self.graph.call_function(operator.add, (scaled, base))

    def finish(self, gives: Sequence[fx.Node]) -> GraphPart:
        """The module, with modules and parameters of the traced model."""
        outputs = [self._value(node) for node in gives]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self.graph.lint()
        model = self.cutter.traced.model
        targets = [str(node.target) for node in self.graph.nodes if node.op in ("get_attr", "call_module")]
        part = GraphPart({target: _attribute(model, target) for target in targets}, self.graph)
        attributes = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        part.keep_out(sorted(name for name in attributes if _is_transient(model, name)))
        return part


def _attribute(model: nn.Module, name: str) -> Any:
    value: Any = operator.attrgetter(name)(model)
    has_weights = isinstance(value, nn.Parameter) or (
        isinstance(value, nn.Module) and any(True for _ in value.parameters())
    )
    # What has no weights may be used by several parts; each gets its own.
    return value if has_weights else copy.deepcopy(value)


def _is_transient(model: nn.Module, name: str) -> bool:
    home, _, own = name.rpartition(".")
    module = model.get_submodule(home)
    value = getattr(module, own)
    is_persistent = own in module._buffers and own not in module._non_persistent_buffers_set
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not is_persistent
