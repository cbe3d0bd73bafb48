"""A classifier's forward pass as one graph that holds in evaluation and in training, for any number of images.

B images. `torch.fx` traces; what is added here is what its traces bake in without a word:

- *The mode.* A model is traced in both modes. A module whose own operations differ (stochastic depth, batch norm
  written out, attention with dropout) becomes a leaf: it is called as it is. `F.dropout` becomes a module.
- *Control flow on shapes.* A condition, a length or a number that follows from the shapes alone and is the same for 1
  and 3 images is what it is; any other makes its module a leaf.
- *Modules that cannot be traced* are leaves as well. A model is refused only where its own `forward` cannot be traced.
- *Contexts.* A module that switches gradients or autocast on or off becomes a leaf.
- *Buffers* stay buffers (fx computes with them while tracing and keeps the result as a constant).
"""

import copy
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from offramp.errors import UsageError, first_line
from offramp.graphs.interpreter import Values, copied, meta_twin, values_of
from offramp.graphs.modes import differing, dropout_as_modules, other_constants, owners_of
from offramp.graphs.random_state import RandomState, random_state_kept
from offramp.graphs.tracer import ShapeTracer

MOST_ROUNDS = 20  # of tracing; each makes more modules leaves


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
    """Trace a copy of `model`; refused is one whose own `forward` cannot be traced or does not run on such images."""
    work = copied(model)
    twin = meta_twin(work)
    shadow = copy.deepcopy(twin).eval()
    leaves: dict[str, str] = {}
    with random_state_kept(), torch.enable_grad():  # as in training; where a forward switches them off, that shows
        for _ in range(MOST_ROUNDS):
            training, evaluating = (Tracing(twin.train(mode), shadow, image_shape, leaves) for mode in (True, False))
            new = (
                training.reasons | evaluating.reasons
                or differing(training.graph, evaluating.graph)
                or other_constants(evaluating.graph, training.constants, evaluating.constants)
            )
            if not new:
                break
            if "" in new:
                way_out = "Put what differs into a module of its own"
                if getattr(model, "aux_logits", False) is True:  # GoogLeNet and Inception
                    way_out = "Build it with aux_logits=False"
                raise UsageError(
                    f"{type(model).__name__} cannot be cut: its own forward does other things in training mode than in "
                    f"evaluation mode ({new['']}). {way_out}."
                )
            leaves |= new
        else:
            raise UsageError(f"{type(model).__name__} cannot be cut: each trace of it is another.")
        dropout_as_modules(work, evaluating.graph, training.graph)
        for name, tensor in evaluating.constants.items():
            work.register_buffer(name, tensor.detach(), persistent=False)
        values = values_of(work, evaluating.graph, image_shape)
    owners = {node: owners_of(node) for node in evaluating.graph.nodes}
    return Traced(work, evaluating.graph, values, owners, leaves, image_shape)


class Tracing:
    """One trace of a twin without memory, in the twin's mode."""

    def __init__(
        self, twin: nn.Module, shadow: nn.Module, image_shape: tuple[int, int, int], leaves: dict[str, str]
    ) -> None:
        kind, before, drawn = type(twin).__name__, set(vars(twin)), RandomState()
        tracer = ShapeTracer(Values(twin, shadow, image_shape), set(leaves))
        try:
            self.graph = tracer.trace(twin)
        except Exception as error:  # anything may happen in a forward that is given a stand-in for images
            raise UsageError(
                f"{kind} cannot be cut: torch.fx cannot trace its own forward{_where(error)} "
                f"({first_line(error)}). Move that into a module of its own, or make the model a Sequential."
            ) from error
        if not drawn.is_unchanged():
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
        self.reasons = tracer.reasons


def _where(error: BaseException) -> str:
    """The last line outside torch and this room that led to an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    own = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    return f", line {own[-1].lineno} of {own[-1].filename}" if own else ""
