"""A stage or an exit as a graph of operations on its maps, with the units in it found.

A unit is a convolution, a batch norm that trains, and a ReLU, each read by the next alone.
"""

import contextlib
import copy
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Size, Tensor, fx, nn
from torch.fx._symbolic_trace import PH

from offramp.contexts import ContextTracer
from offramp.drawing import Drawn, drawing_apart
from offramp.errors import OfframpError
from offramp.inplace import changes_in_place, name_of
from offramp.network import has_hooks

RELUS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)
NUM_IMAGES = 2  # a trace is tried on
# What depends on how a tensor lies in memory, which is another way here.
LAYOUT = ("as_strided", "data_ptr", "is_contiguous", "numpy", "storage_offset", "stride", "untyped_storage")


class UntraceableError(OfframpError):
    """A part that cannot be run in this form, and why."""


class Call(nn.Module):
    """A part called with a tuple, so that one which takes `*maps` can be traced for as many as there are."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, maps: tuple[Tensor, ...]) -> Any:
        """What the part gives."""
        return self.part(*maps)


@contextlib.contextmanager
def trial() -> Iterator[None]:
    """Somebody's code is run on noise: without gradients, and what it draws leaves no trace."""
    # Not in inference mode, even where the caller is: its tensors do not count how often they are written.
    with torch.inference_mode(False), torch.no_grad(), drawing_apart():
        yield


@dataclass(frozen=True)
class Unit:
    """A convolution, its batch norm, and the node of its ReLU."""

    first: fx.Node
    """The convolution's."""
    last: fx.Node
    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def source(self) -> fx.Node:
        """What the convolution reads."""
        source = self.first.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def is_pointwise(self) -> bool:
        """Whether it is 1 x 1, without stride and bias: a matrix product of rows."""
        conv = self.conv
        settings = (conv.kernel_size, conv.stride, conv.padding, conv.groups, conv.bias)
        return settings == ((1, 1), (1, 1), (0, 0), 1, None)


class Traced:
    """What a part does, for maps of given shapes.

    Args:
        part: A stage or an exit, in the mode in which it is to run.
        maps: What it is called with.

    Raises:
        UntraceableError: Its operations depend on values, or it gives anything but tensors.
    """

    def __init__(self, part: nn.Module, maps: Sequence[Tensor]) -> None:
        self.root = Call(part)
        try:
            with trial():
                self._trace(maps)
        except Exception as error:  # anything may happen in code that is run with stand-ins for tensors
            raise UntraceableError(f"it cannot be traced: {error}") from error
        self.nodes = [node for node in self.graph.nodes if node.op != "output"]
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        given = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.outputs: tuple[Any, ...] = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if len(self.inputs) != len(maps) or not all(self.is_tensor(node) for node in self.outputs):
            raise UntraceableError("it gives or takes something that is not a tensor")

    def shape(self, node: Any) -> Size:
        """Of a tensor."""
        shape: Size = self.results[node].shape
        return shape

    def is_tensor(self, node: Any) -> bool:
        """Whether a node gives one tensor."""
        return isinstance(node, fx.Node) and isinstance(self.results[node], Tensor)

    def is_map(self, node: Any) -> bool:
        """Whether a node gives one map `[B, channels, height, width]` of floats."""
        if not self.is_tensor(node) or len(self.shape(node)) != 4 or len(self.results[node]) != NUM_IMAGES:
            return False
        return bool(self.results[node].is_floating_point()) and self.shape(node)[1] > 0

    def units(self) -> Iterator[Unit]:
        """The units, in the order of their convolutions."""
        calls = self.calls()
        for first in self.nodes:
            norm = self.only_reader(first)
            last = None if norm is None else self.only_reader(norm)
            if norm is None or last is None or not self.is_relu(last):
                continue
            if len(first.args) != 1 or not self.is_map(first.args[0]):
                continue
            conv_module, norm_module = self.module(first), self.module(norm)
            if is_usual_conv(conv_module) and is_usual_norm(norm_module) and calls[norm.target] == 1:
                yield Unit(first, last, conv_module, norm_module)

    def joined(self, node: fx.Node) -> Sequence[fx.Node] | None:
        """The maps that a node concatenates on the channel axis, if that is what it does."""
        if node.op != "call_function" or node.target not in (torch.cat, torch.concat, torch.concatenate):
            return None
        if "out" in node.kwargs:
            return None
        tensors, dim = (*node.args, 0)[:2] if node.args else (node.kwargs.get("tensors"), 0)
        dim = node.kwargs.get("dim", node.kwargs.get("axis", dim))
        if not isinstance(tensors, (tuple, list)) or not all(self.is_map(t) for t in (node, *tensors)):
            return None
        return tensors if tensors and dim in (1, -3) else None

    def cut(self, node: fx.Node) -> tuple[fx.Node, int, int] | None:
        """Of which map a node takes some neighbouring channels, from which on and how many, if it does that."""
        if node.op != "call_function" or node.target is not operator.getitem or not self.is_map(node):
            return None
        source, index = node.args
        if not (self.is_map(source) and isinstance(index, tuple) and len(index) >= 2):
            return None
        if not isinstance(index[1], slice) or index[0] != slice(None):
            return None
        if any(item not in (slice(None), ...) for item in index[2:]):
            return None
        if any(isinstance(bound, fx.Node) for bound in (index[1].start, index[1].stop, index[1].step)):
            return None
        assert isinstance(source, fx.Node)
        first, stop, step = index[1].indices(self.shape(source)[1])
        return (source, first, stop - first) if step == 1 and stop > first else None

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def attribute(self, node: fx.Node) -> Any:
        """What a node reads off the part."""
        return operator.attrgetter(str(node.target))(self.root)

    def check_alone(self, node: fx.Node) -> None:
        """Refuse an operation, of none of the kinds above, that cannot be differentiated by itself."""
        module = self.module(node)
        if node.op == "get_attr" and str(node.target).startswith("_"):
            raise UntraceableError("it makes tensors of its own")
        name = name_of(node)
        if "out" in node.kwargs or name in LAYOUT:
            raise UntraceableError(f"{name} looks at how tensors lie in memory")
        if changes_in_place(node, module):
            raise UntraceableError(f"{name} changes a tensor in place")
        if isinstance(self.results[node], (tuple, list, dict)) and not isinstance(self.results[node], Size):
            raise UntraceableError(f"{name} gives several tensors")

    def _trace(self, maps: Sequence[Tensor]) -> None:
        """Trace a copy, and run it on two images of noise, as module and as graph: for the shapes, and as a check."""
        twin = copy.deepcopy(self.root)
        before, drawn = _state(twin.part), Drawn()
        with torch.enable_grad():  # where the part switches them off, that shows
            self.graph = ContextTracer().trace(twin, {"maps": (PH,) * len(maps)})
        if not drawn.is_still_so():
            raise ValueError("it draws random numbers in Python")
        if not _is_same(before, _state(twin.part)):
            raise ValueError("it changes itself when it is called")
        for node in self.graph.nodes:
            if node.op == "call_method" and node.target in ("view", "view_as"):  # maps lie otherwise here
                node.target = node.target.replace("view", "reshape")
        noise = [torch.randn(NUM_IMAGES, *x.shape[1:], dtype=x.dtype, device=x.device) for x in maps]
        shown = [x.clone() for x in noise]
        torch.manual_seed(0)
        given = twin(tuple(shown))
        torch.manual_seed(0)
        self.results: dict[fx.Node, Any] = _results(twin, self.graph, noise)
        found = self.graph.process_outputs(next(reversed(self.results.values())))
        self.gives_tuple = type(given) is tuple
        pairs = zip(given, found, strict=True) if self.gives_tuple else [(given, found)]
        if not all(torch.equal(one, other) for one, other in pairs):
            raise ValueError("the graph gives other values than the module")
        if any(x._version for x in shown):
            raise ValueError("it changes what it is given")

    def calls(self) -> Mapping[Any, int]:
        """How often each module is called."""
        return Counter(node.target for node in self.nodes if node.op == "call_module")

    def only_reader(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads this one and nothing else, if there is no other."""
        readers = list(node.users)
        return readers[0] if len(readers) == 1 and readers[0].all_input_nodes == [node] else None

    def is_relu(self, node: fx.Node) -> bool:
        """Whether a node is a ReLU."""
        if node.op == "call_module":
            return type(self.module(node)) is nn.ReLU
        return node.target in (RELUS if node.op == "call_function" else ("relu", "relu_"))


def _results(root: nn.Module, graph: fx.Graph, maps: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """What every node gives. (The graph's own interpreter starts a thread, for a progress bar that nobody sees.)"""
    given = iter(maps)
    results: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            results[node] = next(given)
        elif node.op == "output":
            results[node] = fx.node.map_arg(node.args[0], results.__getitem__)
        else:
            results[node] = call(root, node, results)
    return results


def _state(part: nn.Module) -> list[Any]:
    """What a call could change: what each module holds, and how often its buffers have been written."""
    held = [value for m in part.modules() for value in (*vars(m).values(), *m._buffers.values(), *m._modules.values())]
    return [*held, *(buffer._version for buffer in part.buffers())]


def _is_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def call(root: nn.Module, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """What one node gives."""
    target: Any = node.target
    module = root.get_submodule(target) if node.op == "call_module" else None
    in_order = draws(target if module is None else module)

    def value(read: fx.Node) -> Any:
        return env[read].contiguous() if in_order and isinstance(env[read], Tensor) else env[read]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    if node.op == "get_attr":
        return operator.attrgetter(target)(root)
    return target(*args, **kwargs)


def draws(what: Any) -> bool:
    """Whether a module, function or method draws random numbers: they fall in the order in which a tensor lies."""
    if isinstance(what, nn.Module):
        return isinstance(what, (nn.modules.dropout._DropoutNd, nn.RReLU))
    name = what if isinstance(what, str) else getattr(what, "__name__", "")
    return any(word in name for word in ("dropout", "rrelu", "bernoulli", "rand", "poisson", "multinomial"))


def is_usual_conv(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether it is nothing but a convolution that pads with zeros."""
    return (
        type(module) is nn.Conv2d
        and "forward" not in vars(module)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def is_usual_norm(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Whether it is nothing but a batch norm with gain and shift that trains and keeps the usual running averages."""
    return (
        type(module) is nn.BatchNorm2d
        and "forward" not in vars(module)
        and module.training
        and module.affine
        and module.track_running_stats
        and module.momentum is not None
    )


def is_heard(module: nn.Module) -> bool:
    """Whether somebody hears of what this module is given or gives, or of its gradients."""
    return has_hooks(module) or bool(module._backward_hooks or module._backward_pre_hooks)


def anybody_hears(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody hears of one of these modules, or of all modules there are."""
    hears_all = torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return any(map(is_heard, modules)) or bool(hears_all)
