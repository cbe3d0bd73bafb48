"""Running a traced graph node by node, with memory or without, for the shapes.

B images.
"""

import copy
import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.errors import UsageError, first_line
from offramp.network import eval_twin

BATCHES = (1, 3)  # numbers of images that a graph is run with to tell what depends on it


@dataclass(frozen=True)
class Shape:
    """What is kept of a tensor: its shape, for one number of images."""

    sizes: tuple[int, ...]


class Fields(dict[str, Any]):
    """What is kept of a value whose entries have names, of a type called `kind`: a dict, or a library's dataclass."""

    def __init__(self, kind: str, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.kind = kind


class Interpreter(fx.Interpreter):
    """Runs a graph of one placeholder, the images, as a whole or node by node; it may grow, and values stand in `env`.

    Args:
        module: What the nodes name; without memory (on meta) for shapes alone.
        keep: Whether values stay in `env` after their last use.
        attributes: Where attributes are read, if not in `module`.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        images: Tensor,
        *,
        keep: bool = True,
        attributes: nn.Module | None = None,
    ) -> None:
        super().__init__(module, garbage_collect_values=not keep, graph=graph)
        self.images, self.attributes = images, module if attributes is None else attributes
        self.extra_traceback = False  # errors say what the model says

    def placeholder(self, *_: Any) -> Tensor:
        """The images: a graph has no other."""
        return self.images

    def get_attr(self, target: Any, *_: Any) -> Any:
        """See `attributes`."""
        return operator.attrgetter(target)(self.attributes)

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        """What a node gives. A tensor made of nothing is on the CPU; without memory it has to be where others are."""
        value = super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        return value.detach().to("meta") if self.images.is_meta else value.detach()

    def run_nodes(self, nodes: Iterable[fx.Node]) -> None:
        """Run these, which read of others what is in `env`."""
        for node in nodes:
            self.env[node] = self.run_node(node)


class Values:
    """What the nodes of a growing graph give, found by running it without memory for each number of images.

    Args:
        traced: The module that is traced, without memory; it gets the constants.
        twin: The same, not being traced.
    """

    def __init__(self, traced: nn.Module, twin: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.traced, self.twin = traced, twin
        self.images = [torch.empty(batch, *image_shape, device="meta") for batch in BATCHES]
        self._interpreters: list[Interpreter] = []

    def of(self, wanted: fx.Node) -> tuple[Any, ...]:
        """What a node gives, once for each number of images."""
        if not self._interpreters:
            self._interpreters = [
                Interpreter(self.twin, wanted.graph, images, attributes=self.traced) for images in self.images
            ]
        for interpreter in self._interpreters:
            for node in wanted.graph.nodes:
                if node not in interpreter.env:
                    interpreter.env[node] = interpreter.run_node(node)
                if node is wanted:
                    break
        return tuple(interpreter.env[wanted] for interpreter in self._interpreters)


def copied(model: nn.Module) -> nn.Module:
    """A copy; refused is a model with something in it that cannot be copied: what, and where it is."""
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError) as error:  # of what holds a lock or a file; of a tensor with a history
        what = next(_not_copied(model), None)
        if what is None:
            raise
        raise UsageError(f"{type(model).__name__} cannot be copied: {what}.") from error


def _not_copied(model: nn.Module) -> Iterator[str]:
    """What in a model cannot be copied, and what to do."""
    usual = vars(nn.Module())
    for name, module in model.named_modules():
        own = {attribute: value for attribute, value in vars(module).items() if attribute not in usual}
        for attribute, value in {**own, **module._buffers}.items():
            where = f"{name}.{attribute}" if name else attribute
            if isinstance(value, Tensor) and not value.is_leaf:
                hooks = module._forward_pre_hooks.values()
                if any(getattr(hook, "name", None) == attribute for hook in hooks):  # of torch.nn.utils.weight_norm
                    way_out = "take that off, or use torch.nn.utils.parametrizations"
                else:
                    way_out = "detach it, or compute it in the forward"
                yield f"{where} is a tensor computed from others; {way_out}"
            elif not _can_copy(value):
                yield f"{where} is a {type(value).__name__}; take it out before and put it back after"


def _can_copy(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except (TypeError, RuntimeError):
        return False
    return True


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy without memory, for shapes."""
    without_memory: dict[int, Any] = {id(buffer): buffer.detach().to("meta") for buffer in model.buffers()}
    for p in model.parameters():
        without_memory[id(p)] = nn.Parameter(p.detach().to("meta"), p.requires_grad)
    return copy.deepcopy(model, without_memory)


def values_of(model: nn.Module, graph: fx.Graph, image_shape: tuple[int, int, int]) -> dict[fx.Node, tuple[Any, ...]]:
    """What every node gives for each number of images, in evaluation mode."""
    try:
        columns = [_shapes(meta_twin(model).eval(), graph, batch, image_shape) for batch in BATCHES]
    except Exception:  # some module looks at numbers: run it with memory
        twin = eval_twin(model)
        columns = []
        for batch in BATCHES:
            try:
                columns.append(_shapes(twin, graph, batch, image_shape))
            except Exception as error:  # of the model itself: what it says of such images is the reason
                raise UsageError(
                    f"{type(model).__name__} does not run on {batch} images of {list(image_shape)}: "
                    f"{first_line(error)}."
                ) from error
    return {node: tuple(column[node] for column in columns) for node in graph.nodes}


def _shapes(model: nn.Module, graph: fx.Graph, batch: int, image_shape: tuple[int, int, int]) -> dict[fx.Node, Any]:
    like = next(model.parameters(), torch.empty(0))
    images = torch.randn(batch, *image_shape, device=like.device, dtype=like.dtype)
    keeper = _ShapeKeeper(model, graph, images)
    keeper.run()
    return keeper.shapes


class _ShapeKeeper(Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph, images: Tensor) -> None:
        super().__init__(model, graph, images, keep=False)
        self.shapes: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.shapes[n] = _without_data(value)
        return value


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape))
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_without_data(entry) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return Fields(type(value).__name__, {name: _without_data(getattr(value, name)) for name in names})
    if isinstance(value, dict):
        return Fields("dict", {key: _without_data(entry) for key, entry in value.items()})
    return value
