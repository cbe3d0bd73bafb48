"""A classifier's forward pass as one graph that holds in evaluation and in training, for any number of images.

B images. `torch.fx` traces; what is added here is what its traces bake in without a word:

- *The mode.* A model is traced in both modes. A module whose own operations differ (stochastic depth, batch norm
  written out, attention with dropout) becomes a leaf: it is called as it is. `F.dropout` becomes a module.
- *Control flow on shapes.* A condition, a length or a number that follows from the shapes alone and is the same for 1
  and 3 images is what it is; any other makes its module a leaf.
- *Modules that cannot be traced* are leaves as well. A model is refused only where its own `forward` cannot be traced.
- *Buffers* stay buffers (fx computes with them while tracing and keeps the result as a constant).
"""

import contextlib
import copy
import inspect
import math
import operator
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from offramp.errors import UsageError

BATCHES = (1, 3)  # numbers of images that the graph is run with to tell what depends on it
DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_OF_SHAPE = {"shape", "ndim", "size", "dim", "numel", "nelement"}
_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__
MOST_ROUNDS = 20  # of tracing; each makes more modules leaves


@dataclass(frozen=True)
class Shape:
    """What is kept of a tensor: its shape, for one number of images."""

    sizes: tuple[int, ...]


@dataclass
class Traced:
    """A model and the graph of its forward pass.

    Attributes:
        model: A copy of the model, whose modules and parameters the graph names.
        graph: One placeholder, the images; the names of the modules that a node belongs to are in `owners`.
        values: Of each node, one for each number of images in `BATCHES`: tensors as `Shape`, all else as it is.
        owners: Of each node, the modules it belongs to, outermost first.
        leaves: Modules that are called as they are because they cannot be traced, and why.
        image_shape: `(channels, height, width)`.
    """

    model: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, tuple[Any, ...]]
    owners: dict[fx.Node, tuple[str, ...]]
    leaves: dict[str, str]
    image_shape: tuple[int, int, int]


def trace(model: nn.Module, image_shape: tuple[int, int, int]) -> Traced:
    """Trace a copy of `model`; the model stays as it is.

    Raises:
        UsageError: A model whose own `forward` cannot be traced, or that does not run on such images.
    """
    work = copy.deepcopy(model)
    twin = meta_twin(work)
    shadow = copy.deepcopy(twin).eval()
    leaves: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]):
        for _ in range(MOST_ROUNDS):
            training, evaluating = (_Tracing(twin.train(mode), shadow, image_shape, leaves) for mode in (True, False))
            new = training.reasons | evaluating.reasons or _differing(training, evaluating)
            if not new:
                break
            if "" in new:
                raise UsageError(
                    f"{type(model).__name__} cannot be cut: its own forward does other things in training mode than in "
                    f"evaluation mode ({new['']}). Put what differs into a module of its own."
                )
            leaves |= new
        else:
            raise UsageError(f"{type(model).__name__} cannot be cut: each trace of it is another.")
        _dropout_as_modules(work, evaluating, training)
        for name, tensor in evaluating.constants.items():
            work.register_buffer(name, tensor.detach(), persistent=False)
        values = _values_of(work, evaluating.graph, image_shape)
    return Traced(work, evaluating.graph, values, {n: _owners(n) for n in evaluating.nodes}, leaves, image_shape)


class _Tracing:
    """One trace of a twin without memory, in the twin's mode."""

    def __init__(
        self, twin: nn.Module, shadow: nn.Module, image_shape: tuple[int, int, int], leaves: dict[str, str]
    ) -> None:
        kind, before, drawn = type(twin).__name__, set(vars(twin)), torch.get_rng_state()
        tracer = _Tracer(_Values(twin, shadow, image_shape), set(leaves))
        try:
            self.graph = tracer.trace(twin)
        except Exception as error:  # anything may happen in a forward that is given a stand-in for images
            raise UsageError(
                f"{kind} cannot be cut: torch.fx cannot trace its own forward{_where(error)} "
                f"({_first_line(error)}). Move that into a module of its own, or make the model a Sequential."
            ) from error
        if not torch.equal(drawn, torch.get_rng_state()):
            raise UsageError(
                f"{kind} cannot be cut: its own forward draws random numbers that torch.fx would keep as constants. "
                "Move that into a module of its own."
            )
        added = sorted(set(vars(twin)) - before)
        # Tensors that the forward pass makes of nothing, or keeps beside its buffers.
        self.constants = {name: getattr(twin, name) for name in added}
        state = [name for name, value in self.constants.items() if not isinstance(value, Tensor)]
        if state:
            raise UsageError(f"{kind} cannot be cut: its own forward sets self.{state[0]}, so calls may differ.")
        for constant in added:
            delattr(twin, constant)
        self.nodes = list(self.graph.nodes)
        self.reasons = tracer.reasons


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy without memory, for shapes."""
    without_memory: dict[int, Any] = {id(t): _on_meta(t) for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, without_memory)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _owners(node: fx.Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name, _ in node.meta.get("nn_module_stack", {}).values()))


class _Values:
    """What the nodes of a growing graph give, found by running it without memory for each number of images."""

    def __init__(self, twin: nn.Module, shadow: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.traced = twin  # gets the constants
        self.twin = shadow
        self.image_shape = image_shape
        self.known: dict[fx.Node, tuple[Any, ...]] = {}

    def of(self, wanted: fx.Node) -> tuple[Any, ...]:
        """What a node gives, once for each number of images."""
        with _untraced():
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


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """While it traces, fx stands in the place of two methods of every module; here modules are called as usual."""
    replaced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = replaced  # type: ignore[method-assign]


def call(root: nn.Module, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """What one node gives, for what the nodes that it reads have given."""
    target: Any = node.target
    if node.op == "get_attr":
        found: Any = root
        for part in target.split("."):
            found = getattr(found, part)
        return found
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if node.op == "output":
        return args[0]
    if node.op == "call_module":
        return root.get_submodule(target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


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


class _Tracer(fx.Tracer):
    def __init__(self, values: _Values, leaves: set[str]) -> None:
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
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        last, stack, state = (
            next(iter(reversed(self.graph.nodes)), None),
            dict(self.module_stack),
            torch.get_rng_state(),
        )
        try:
            found = super().call_module(m, forward, args, kwargs)
            if torch.equal(state, torch.get_rng_state()):
                return found
            self.reasons[name] = "it draws random numbers in Python"
        except Exception as error:  # anything may happen in a forward that is given a stand-in
            self.reasons[name] = _first_line(error)
        torch.set_rng_state(state)
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
        found = self.values.of(node)
        lengths = {len(value) if isinstance(value, (tuple, list, Tensor)) else -1 for value in found}
        if len(lengths) > 1 or -1 in lengths:
            raise fx.proxy.TraceError("its control flow depends on the number of images")
        return lengths.pop()

    def shape_value(self, node: fx.Node) -> Any:
        """The value of a node that follows from the shapes alone, whatever the number of images."""
        first, second = self.values.of(node)
        if _is_plain(first) and first == second and self._follows_from_shapes(node):
            return first
        raise fx.proxy.TraceError("its control flow depends on values, or on the number of images")

    def _follows_from_shapes(self, node: fx.Node) -> bool:
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node) and isinstance(self.values.of(first)[0], Tensor):
            return (node.args[1] if node.target is getattr else node.target) in _OF_SHAPE
        return all(self._follows_from_shapes(read) for read in node.all_input_nodes)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) or value is None


def _differing(training: _Tracing, evaluating: _Tracing) -> dict[str, str]:
    """The modules whose own operations are others in training mode; where there are none, whose inputs are."""
    both = [_by_owner(training.nodes), _by_owner(evaluating.nodes)]
    found = {}
    for owner in both[0].keys() | both[1].keys():
        one, other = both[0].get(owner, []), both[1].get(owner, [])
        if one != other:
            what = next((b or a for a, b in zip([*one, None], [*other, None], strict=False) if a != b), None)
            found[owner] = f"other operations in training mode, such as {what[1] if what else 'none'}"
    if found:
        return found
    places = [{node: i for i, node in enumerate(side.nodes)} for side in (training, evaluating)]
    for one, other in zip(training.nodes, evaluating.nodes, strict=True):
        if [places[0][n] for n in one.all_input_nodes] != [places[1][n] for n in other.all_input_nodes]:
            return {_caller(other): f"{other.name} reads something else in training mode"}
    return {}


def _by_owner(nodes: list[fx.Node]) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for node in nodes:
        if node.op == "get_attr":  # one node for all readers: it belongs to the first
            continue
        args, kwargs = node.args, dict(node.kwargs)
        if node.target in DROPOUTS:
            arguments = inspect.signature(node.target).bind(*args, **kwargs).arguments  # type: ignore[arg-type]
            args, kwargs = (), {name: value for name, value in arguments.items() if name != "training"}
        plain = fx.node.map_arg((args, kwargs), lambda read: "a node")
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        found.setdefault(_caller(node), []).append((node.op, target, repr(plain)))
    return found


def _caller(node: fx.Node) -> str:
    owners = _owners(node)
    if node.op == "call_module":
        owners = owners[:-1]
    return owners[-1] if owners else ""


def _dropout_as_modules(model: nn.Module, evaluating: _Tracing, training: _Tracing) -> None:
    """What `F.dropout(x, training=self.training)` has baked in, as a module that knows its mode."""
    number = 0
    for node, in_training in zip(evaluating.nodes, training.nodes, strict=True):
        if node.target not in DROPOUTS:
            continue
        arguments, others = (_dropout_arguments(n) for n in (node, in_training))
        if arguments["training"] or not others["training"]:
            continue  # always, or never
        name = f"dropout_of_forward_{number}"
        number += 1
        setattr(model, name, DROPOUTS[node.target](arguments["p"], inplace=arguments["inplace"]))
        with evaluating.graph.inserting_before(node):
            module = evaluating.graph.call_module(name, (arguments["input"],))
        module.meta.update(node.meta)
        node.replace_all_uses_with(module)
        evaluating.graph.erase_node(node)
    evaluating.nodes = list(evaluating.graph.nodes)


def _dropout_arguments(node: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments


def eval_twin(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with the model's own weights and buffers of its own."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()


def _values_of(model: nn.Module, graph: fx.Graph, image_shape: tuple[int, int, int]) -> dict[fx.Node, tuple[Any, ...]]:
    """What every node gives for each number of images, in evaluation mode."""
    try:
        columns = [_run(meta_twin(model).eval(), graph, batch, image_shape) for batch in BATCHES]
    except Exception:  # some module looks at numbers: run it with memory
        twin = eval_twin(model)
        columns = []
        for batch in BATCHES:
            try:
                columns.append(_run(twin, graph, batch, image_shape))
            except Exception as error:  # of the model itself: what it says of such images is the reason
                raise UsageError(
                    f"{type(model).__name__} does not run on {batch} images of {list(image_shape)}: "
                    f"{_first_line(error)}."
                ) from error
    return {node: tuple(column[node] for column in columns) for node in graph.nodes}


@torch.no_grad()
def _run(model: nn.Module, graph: fx.Graph, batch: int, image_shape: tuple[int, int, int]) -> dict[fx.Node, Any]:
    like = next(model.parameters(), torch.empty(0))
    values: dict[fx.Node, Any] = {}
    found = {}
    waiting = {node: len(node.users) for node in graph.nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = torch.randn(batch, *image_shape, device=like.device, dtype=like.dtype)
        else:
            values[node] = to_device_of(like, call(model, node, values.__getitem__))
        found[node] = _without_data(values[node])
        for read in node.all_input_nodes:
            waiting[read] -= 1
            if not waiting[read]:
                del values[read]
    return found


def to_device_of(like: Tensor, value: Any) -> Any:
    """A tensor made of nothing is on the CPU; without memory it has to be where the others are."""
    return value.to("meta") if isinstance(value, Tensor) and like.is_meta else value


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape))
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_without_data(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _without_data(entry) for key, entry in value.items()}
    return value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _where(error: BaseException) -> str:
    """The last line of somebody's own code that led to an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    own = [f for f in frames if f.filename != __file__]
    return f", line {own[-1].lineno} of {own[-1].filename}" if own else ""
