"""The one tracer: torch.fx's, beside other threads, with answers to what Python asks about shapes.

B images.
"""

import contextlib
import math
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.errors import first_line
from offramp.graphs.interpreter import Values
from offramp.graphs.random_state import ONE_AT_A_TIME, RandomState

_OF_SHAPE = {"shape", "ndim", "size", "dim", "numel", "nelement"}


class Tracer(fx.Tracer):
    """Traces as torch.fx does, one trace at a time in the process, and only what its own thread calls.

    While it traces, torch.fx replaces two methods of every module, for all threads; calls of other threads are passed
    on as if it did not. What torch.compile has made refuses to run meanwhile, in any thread: torch asks one flag of the
    process.

    Raises:
        torch.fx.proxy.TraceError: While tracing: the code switches gradients or autocast on or off, which a graph does
            not keep. What holds outside is what was on when the tracer was made.
    """

    _thread: int | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._gradients, self._autocasts = torch.is_grad_enabled(), _autocasts()

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """As in fx."""
        with ONE_AT_A_TIME, self._tracing(threading.get_ident()):
            return super().trace(*args, **kwargs)

    @contextlib.contextmanager
    def _tracing(self, thread: int | None) -> Iterator[None]:
        before, self._thread = self._thread, thread
        try:
            yield
        finally:
            self._thread = before

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A context in which modules are called as usual."""
        return self._tracing(None)

    @property
    def is_tracing(self) -> bool:
        """Whether what is called now, in this thread, is being traced."""
        return threading.get_ident() == self._thread

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As in fx, in the thread that traces."""
        return super().call_module(m, forward, args, kwargs) if self.is_tracing else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As in fx, in the thread that traces."""
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self.is_tracing else attr_val

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As in fx."""
        if torch.is_grad_enabled() != self._gradients:
            raise fx.proxy.TraceError("it switches gradients off or on")
        if _autocasts() != self._autocasts:
            raise fx.proxy.TraceError("it switches autocast on or off")
        return super().create_node(*args, **kwargs)


def _autocasts() -> int:
    """How many contexts of autocast are open, including those that switch it off."""
    number: int = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return number


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


class ShapeTracer(Tracer):
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
        last, stack, random_state = next(iter(reversed(self.graph.nodes)), None), dict(self.module_stack), RandomState()
        try:
            output = super().call_module(m, forward, args, kwargs)
            if random_state.is_unchanged():
                return output
            self.reasons[name] = "it draws random numbers in Python"
        except Exception as error:  # anything may happen in a forward that is given a stand-in
            self.reasons[name] = first_line(error)
        random_state.restore()
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
        values = self._values_of(node)
        lengths = {len(value) if isinstance(value, (tuple, list, Tensor)) else -1 for value in values}
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
