"""A network's stages and exits as ONNX models, and graphs written node by node that take others in."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

if TYPE_CHECKING:
    import onnx


OPSET = 18  # the first with reductions and antialiased resizing as torch has them; onnxruntime 1.14 runs it
IR_VERSION = 8  # what came with that opset
BATCH = "batch"  # the name of the first axis
FLOAT, UINT8, INT32, INT64, BOOL, DOUBLE = 1, 2, 6, 7, 9, 11  # ONNX's numbers for types


@dataclass(frozen=True)
class Part:
    """One stage or one exit as an ONNX model, and names in the order of the carry, without inputs it does not use."""

    model: "onnx.ModelProto"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """A network in parts: K stages and K exits, float32, in evaluation mode, on images of one shape `(C, H, W)`."""

    stages: tuple[Part, ...]
    exits: tuple[Part, ...]
    image_shape: tuple[int, int, int]


class Graph:
    """Nodes and constants on their way to a graph, which may be a branch of an `If` in another.

    Args:
        prefix: Every name made here begins with it: no two graphs of a file use one name, and a profile of the runtime
            says to which stage a kernel belongs.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._made = 0

    def _name(self, hint: str) -> str:
        self._made += 1
        return f"{self.prefix}{hint}_{self._made}"

    @contextlib.contextmanager
    def under(self, prefix: str) -> Iterator[None]:
        """Another prefix, for a while."""
        self.prefix, before = prefix, self.prefix
        yield
        self.prefix = before

    def several(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """A node; the names of its outputs. Without an input that is optional: an empty name."""
        from onnx import helper

        name = self._name(operator)
        names = [name, *(f"{name}:{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; its name."""
        return self.several(operator, *inputs, outputs=1, **attributes)[0]

    def call(self, name: str, value: str) -> None:
        """Let a value have another name too: an output's."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value], [name], f"{self.prefix}{name}"))

    def constant(self, value: ArrayLike, dtype: DTypeLike, name: str | None = None) -> str:
        """A tensor that is part of the file; its name."""
        from onnx import numpy_helper

        name = name or self._name("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        """A constant: int64 `[n]`."""
        return self.constant(values, np.int64)

    def take(self, tensor: "onnx.TensorProto", name: str) -> str:
        """A copy of a tensor, as a constant of this name."""
        self._constants.append(type(tensor)())
        self._constants[-1].CopyFrom(tensor)
        self._constants[-1].name = name
        return name

    def part(self, part: Part, inputs: Mapping[str, str], shared: Mapping[bytes, str]) -> list[str]:
        """A stage or an exit, which stays as it is; what its outputs are called here.

        `inputs` says what its inputs are called, `shared` the names of tensors that are there already, by `content`.
        """
        # What passes a stage as it is needs no copy.
        graph = part.model.graph
        passed = {
            node.output[0]: inputs[node.input[0]]
            for node in graph.node
            if node.op_type == "Identity" and node.input[0] in inputs and node.output[0] in part.outputs
        }
        prefix = self.prefix
        here = {**inputs, **passed, "": ""}
        for tensor in graph.initializer:
            there = shared.get(content(tensor))
            here[tensor.name] = there or self.take(tensor, prefix + tensor.name)
        nodes = [type(node)() for node in graph.node]
        for node, original in zip(nodes, graph.node, strict=True):
            node.CopyFrom(original)
            node.name = prefix + original.name
        rename(nodes, lambda name: here[name] if name in here else prefix + name)
        self._nodes += [node for node in nodes if not (node.op_type == "Identity" and node.input[0] == node.output[0])]
        return [here.get(name, prefix + name) for name in part.outputs]

    def either(self, condition: str, then: "onnx.GraphProto", otherwise: "onnx.GraphProto") -> list[str]:
        """An `If`: one of two graphs runs, and both see every value made so far. What comes out, by names."""
        return self.several("If", condition, outputs=len(then.output), then_branch=then, else_branch=otherwise)

    def finish(
        self, name: str, outputs: Sequence["onnx.ValueInfoProto"], inputs: Sequence["onnx.ValueInfoProto"] = ()
    ) -> "onnx.GraphProto":
        """The graph."""
        from onnx import helper

        return helper.make_graph(self._nodes, name, inputs, outputs, self._constants)

    def model(
        self, outputs: Sequence["onnx.ValueInfoProto"], inputs: Sequence["onnx.ValueInfoProto"]
    ) -> "onnx.ModelProto":
        """The graph as a model; nothing is checked."""
        from onnx import helper

        opset, whole = [helper.make_opsetid("", OPSET)], self.finish("offramp", outputs, inputs)
        return helper.make_model(whole, ir_version=IR_VERSION, opset_imports=opset, producer_name="offramp")


def checked(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model, after ONNX's own checks, with the shapes of all values."""
    import onnx
    from onnx import shape_inference

    onnx.checker.check_model(model)
    return shape_inference.infer_shapes(model, strict_mode=True)


def value_info(name: str, kind: int, *sides: int | str) -> "onnx.ValueInfoProto":
    """An input or output with the rows first, of a type by ONNX's number."""
    from onnx import helper

    return helper.make_tensor_value_info(name, kind, [BATCH, *sides])


def content(tensor: "onnx.TensorProto") -> bytes:
    """A hash of type, shape and values."""
    unnamed = type(tensor)()
    unnamed.CopyFrom(tensor)
    unnamed.ClearField("name")
    return hashlib.sha256(unnamed.SerializeToString(deterministic=True)).digest()


def rename(nodes: Iterable["onnx.NodeProto"], new: Callable[[str], str]) -> None:
    """Give every value that nodes read or make another name, in the graphs inside them too."""
    for node in nodes:
        for side in (node.input, node.output):
            side[:] = [new(name) for name in side]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for value in (*attribute.g.input, *attribute.g.output, *attribute.g.initializer):
                    value.name = new(value.name)
                rename(attribute.g.node, new)
