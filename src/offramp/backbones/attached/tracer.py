"""torch.fx's tracer, with answers to what Python asks about shapes, and leaves where it cannot go on.

B images.
"""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.backbones.attached.running import BATCHES, call
from offramp.contexts import ContextTracer
from offramp.drawing import Drawn
from offramp.errors import first_line

_OF_SHAPE = {"shape", "ndim", "size", "dim", "numel", "nelement"}


class Values:
    """What the nodes of a growing graph give, found by running it without memory for each number of images."""

    def __init__(self, twin: nn.Module, shadow: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.traced = twin  # gets the constants
        self.twin = shadow
        self.image_shape = image_shape
        self.known: dict[fx.Node, tuple[Any, ...]] = {}

    def of(self, wanted: fx.Node) -> tuple[Any, ...]:
        """What a node gives, once for each number of images."""
        for node in wanted.graph.nodes:
            if node not in self.known:
                self.known[node] = tuple(self._one(node, i) for i in range(len(BATCHES)))
            if node is wanted:
                break
        return self.known[wanted]

    def _one(self, node: fx.Node, i: int) -> Any:
        if node.op == "placeholder":
            return torch.empty(BATCHES[i], *self.image_shape, device="meta")
        root = self.traced if node.op == "get_attr" else self.twin
        with torch.no_grad():
            found = call(root, node, lambda read: self.known[read][i])
        return found.to("meta") if isinstance(found, Tensor) else found


class _Concrete:
    """Python's questions that a stand-in of fx answers only where shapes decide."""

    node: fx.Node
    tracer: Any

    def __len__(self) -> int:
        return self.tracer.length(self.node)  # type: ignore[no-any-return]

    def __index__(self) -> int:
        value = self.tracer.shape_value(self.node)
        return value.__index__()  # type: ignore[no-any-return]

    __int__ = __index__

    def __float__(self) -> float:
        return float(self.tracer.shape_value(self.node))

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)  # type: ignore[arg-type]


class _Proxy(_Concrete, fx.Proxy):
    pass


class _Attribute(_Concrete, fx.proxy.Attribute):
    pass


class Tracer(ContextTracer):
    """Traces a model from stand-in images; `leaves` and `reasons` say which modules it could not look into, and why."""

    def __init__(self, values: Values, leaves: set[str]) -> None:
        super().__init__(autowrap_modules=(math,))
        self.proxy_buffer_attributes = True
        self.values = values
        self.leaves = set(leaves)
        self.reasons: dict[str, str] = {}
        self._attributes: dict[str, fx.Proxy] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One stand-in, for the images; the other arguments of `forward` keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """See `_Concrete`."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules of torch, those without modules inside (nothing to cut there), and those that are not traceable."""
        innermost = next(m.children(), None) is None and m is not self.root
        return innermost or module_qualified_name in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As in fx; the cache is looked after where nodes are dropped."""
        if not self.is_tracing:
            return attr_val
        self._attributes = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module that cannot be traced, or draws random numbers while it is, is a leaf from then on."""
        if not self.is_tracing:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        last, stack, drawn = next(iter(reversed(self.graph.nodes)), None), dict(self.module_stack), Drawn()
        try:
            found = super().call_module(m, forward, args, kwargs)
            if drawn.is_still_so():
                return found
            self.reasons[name] = "it draws random numbers in Python"
        except Exception as error:  # anything may happen in a forward that is given a stand-in
            self.reasons[name] = first_line(error)
        drawn.restore()
        self.leaves.add(name)
        self.module_stack.clear()
        self.module_stack.update(stack)
        self._drop_after(last)
        return super().call_module(m, forward, args, kwargs)

    def _drop_after(self, last: fx.Node | None) -> None:
        for node in list(reversed(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
        kept = set(self.graph.nodes)
        for name in [name for name, proxy in self._attributes.items() if proxy.node not in kept]:
            del self._attributes[name]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition that the shapes decide."""
        return bool(self.shape_value(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The entries of what has a length that the shapes decide."""
        return (operator.getitem(obj, i) for i in range(self.length(obj.node)))

    def length(self, node: fx.Node) -> int:
        """That of a tuple or a tensor, if it is the same for any number of images."""
        found = self._values_of(node)
        lengths = {len(value) if isinstance(value, (tuple, list, Tensor)) else -1 for value in found}
        if len(lengths) > 1 or -1 in lengths:
            raise fx.proxy.TraceError("its control flow depends on the number of images")
        return lengths.pop()

    def shape_value(self, node: fx.Node) -> Any:
        """The value of a node that follows from the shapes alone, whatever the number of images."""
        first, second = self._values_of(node)
        if _is_plain(first) and first == second and self._follows_from_shapes(node):
            return first
        raise fx.proxy.TraceError("its control flow depends on values, or on the number of images")

    def _values_of(self, node: fx.Node) -> tuple[Any, ...]:
        with self.paused():
            return self.values.of(node)

    def _follows_from_shapes(self, node: fx.Node) -> bool:
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node) and isinstance(self._values_of(first)[0], Tensor):
            return (node.args[1] if node.target is getattr else node.target) in _OF_SHAPE
        return all(self._follows_from_shapes(read) for read in node.all_input_nodes)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) or value is None
