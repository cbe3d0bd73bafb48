"""A network and its policy as one ONNX file that skips: the stages that an image does not need are not run on it.

B images, K exits, N classes. After each exit but the last stands an `If`: where rows go on, its branch gathers them,
runs the next stage on them alone, and scatters the answers of later exits into those of this one. The branch holds
the next `If`. Where no row goes on the branch does not run, and with it no kernel of any later stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offramp.data import Inputs
from offramp.errors import UsageError
from offramp.export.graph import Graph, content
from offramp.export.int8 import Int8
from offramp.export.metadata import metadata
from offramp.export.part import BATCH, IR_VERSION, OPSET, Part, Parts
from offramp.export.pixels import PIXELS, prepare
from offramp.export.reading import Read, read
from offramp.export.stage_files import check_policy
from offramp.export.tracing import parts
from offramp.network import EarlyExitNet
from offramp.policy import NOBODY, PATIENCE, Policy
from offramp.storage import write_atomically

if TYPE_CHECKING:
    import onnx

IMAGES, THRESHOLDS = "images", "thresholds"
OUTPUTS = ("label", "exit", "confidence", "probabilities")
_TYPES = {"label": 7, "exit": 7, "confidence": 1, "probabilities": 1, "stays": 9}  # of ONNX: int64, float32, bool


def onnx_file(
    network: EarlyExitNet,
    policy: Policy,
    path: str | Path,
    *,
    inputs: Inputs | None = None,
    preprocess: bool = False,
    image_shape: Sequence[int] | None = None,
    made: Parts | None = None,
    int8: Int8 | None = None,
) -> Path:
    """Write one ONNX file that answers as `Engine(network, policy)` does, and skips as much.

    Input `images`: float32 `[B, C, H, W]`, normalised as in training, B from 0; with `preprocess` uint8
    `[B, height, width, 3]`, RGB pixels of any size. Input `thresholds`, optional: float32 `[K - 1]`, by default the
    policy's; 1e8 closes an exit. Outputs: `label` `[B]` and `exit` `[B]` (both int64, from 0), `confidence` `[B]` in
    the units of the policy's measure, `probabilities` `[B, N]` of the exit taken.

    The head of an exit that the policy closes (`NOBODY`) does not run, unless `thresholds` opens it.

    Args:
        network: Stays as it is.
        policy: For this network, or for any.
        path: The file; one that is there is replaced.
        inputs: How an image becomes the input, and the names of the classes: for `preprocess` and the metadata.
        preprocess: Take pixels, and resize, scale and normalise them in the file. Pixels differ from those of
            `Inputs.read` by rounding: at most 1 of 255 where an image shrinks, 2 where it grows.
        image_shape: `(C, H, W)`, where the network does not say it.
        made: The network's `parts`, where they are there already.
        int8: What was found of them, where they are `quantized`: for the metadata.

    Returns:
        The file's path.

    Raises:
        UsageError: ONNX is not installed, a part that cannot be traced or uses an operator that ONNX lacks (named), no
            image shape, a policy for another network, `preprocess` without `inputs`.
    """
    check_policy(network, policy)
    if preprocess and inputs is None:
        raise UsageError("To take pixels the file must know how they become the network's input: pass `inputs`.")
    split = made or parts(network, image_shape)
    if inputs is not None and tuple(inputs.image_shape) != split.image_shape:
        raise UsageError(
            f"`inputs` makes images of shape {inputs.image_shape}; the network is for {split.image_shape}."
        )
    texts = metadata(network, policy, split.image_shape, inputs, preprocess, int8)
    model = joined(split, network, policy, inputs if preprocess else None, texts)
    file = Path(path).expanduser()
    write_atomically(file, model.SerializeToString(deterministic=True))
    return file


def joined(
    split: Parts, network: EarlyExitNet, policy: Policy, pixels: Inputs | None, texts: Mapping[str, str]
) -> "onnx.ModelProto":
    """The model that `onnx_file` writes; with `pixels` it takes such, and with `texts` as its metadata."""
    import onnx
    from onnx import helper, shape_inference

    graph = Graph("")
    images, graph_inputs = IMAGES, [helper.make_tensor_value_info(IMAGES, 1, [BATCH, *split.image_shape])]
    if pixels is not None:
        graph_inputs = [helper.make_tensor_value_info(IMAGES, 2, [BATCH, *PIXELS])]
        with graph.under("pixels/"):
            images = prepare(graph, pixels, IMAGES)
    last = len(split.stages) - 1
    if last:
        graph.constant(policy.thresholds[:-1], np.float32, THRESHOLDS)
        graph_inputs.append(helper.make_tensor_value_info(THRESHOLDS, 1, [last]))
    writer = _Writer(split, network.reads, network.num_classes, policy, _shared(graph, split))
    for name, value in zip(OUTPUTS, writer.answers(graph, 0, {IMAGES: images}, ()), strict=True):
        graph.call(name, value)
    whole = graph.finish("offramp", writer.typed(OUTPUTS), graph_inputs)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(whole, ir_version=IR_VERSION, opset_imports=opset, producer_name="offramp")
    helper.set_model_props(model, dict(texts))
    onnx.checker.check_model(model)
    shape_inference.infer_shapes(model, strict_mode=True)
    return model


def _shared(graph: Graph, split: Parts) -> dict[bytes, str]:
    """Tensors that several parts have: once in the outermost graph, which every branch sees. Their names by content."""
    first: dict[bytes, onnx.TensorProto] = {}
    shared: dict[bytes, str] = {}
    for tensor in (tensor for part in (*split.stages, *split.exits) for tensor in part.model.graph.initializer):
        key = content(tensor)
        if key in first and key not in shared:
            shared[key] = graph.take(first[key], f"shared/{tensor.name}_{len(shared)}")
        first.setdefault(key, tensor)
    return shared


@dataclass(frozen=True)
class _Writer:
    """Writes the levels of the graph: level k runs stage k, asks exit k and holds level k + 1 in a branch."""

    split: Parts
    reads: Sequence[int]
    num_classes: int
    policy: Policy
    shared: Mapping[bytes, str]

    def answers(self, graph: Graph, k: int, carry: Mapping[str, str], state: tuple[str, ...]) -> list[str]:
        """`OUTPUTS` for all rows of the carry that comes into stage k, from 0."""
        with graph.under(f"stage_{k + 1}/"):
            outputs = graph.part(self.split.stages[k], carry, self.shared)
        with graph.under(f"exit_{k + 1}/"):
            answer, stays = self._ask(graph, k, outputs[self.reads[k]], state)
            exits = graph.add("Expand", graph.constant(k, np.int64), graph.add("Shape", answer.label))
            mine = [answer.label, exits, answer.confidence, answer.probabilities]
            if stays is None:
                return mine
            rows = graph.add("Transpose", graph.add("NonZero", stays), perm=[1, 0])  # [rows that go on, 1]
            some = graph.add("Greater", graph.add("Size", rows), graph.constant(0, np.int64))
            carry = dict(zip(self.split.stages[k].outputs, outputs, strict=True))
            onward = self._onward(k, rows, mine, carry, answer.state)
            none = Graph(f"exit_{k + 1}/none/")
            same = [none.add("Identity", value) for value in mine]
            return graph.either(some, onward, none.finish("none_goes_on", self.typed(OUTPUTS, same)))

    def _onward(
        self, k: int, rows: str, mine: Sequence[str], carry: Mapping[str, str], state: tuple[str, ...]
    ) -> "onnx.GraphProto":
        """Level k + 1 on some of the rows of level k, and its answers in their places among `mine`."""
        graph = Graph(f"stage_{k + 2}/")
        which = graph.add("Squeeze", rows, graph.ints(1))
        wanted = self.split.stages[k + 1].inputs
        gathered = {name: graph.add("Gather", carry[name], which, axis=0) for name in wanted}
        state = tuple(graph.add("Gather", value, which, axis=0) for value in state)
        theirs = self.answers(graph, k + 1, gathered, state)
        all_rows = [graph.add("ScatterND", before, rows, after) for before, after in zip(mine, theirs, strict=True)]
        return graph.finish("some_go_on", self.typed(OUTPUTS, all_rows))

    def _ask(self, graph: Graph, k: int, seen: str, state: tuple[str, ...]) -> tuple[Read, str | None]:
        """What exit k says of all rows, and a mask of those that go on; None at the last exit."""
        last = len(self.split.stages) - 1
        closed = self.policy.thresholds[k] == NOBODY and self.policy.measure.name != PATIENCE
        if k == last:
            return self._head(graph, k, seen, state), None
        threshold = graph.add("Gather", THRESHOLDS, graph.constant(k, np.int64), axis=0)
        if not closed:
            answer = self._head(graph, k, seen, state)
            return answer, graph.add("Not", graph.add("GreaterOrEqual", answer.confidence, threshold))
        # No row leaves here unless `thresholds` opens the exit: only then is the head run.
        kinds = ("label", "confidence", "probabilities", "stays")
        then = Graph(f"exit_{k + 1}/open/")
        answer = self._head(then, k, seen, ())
        stays = then.add("Not", then.add("GreaterOrEqual", answer.confidence, threshold))
        asked = then.finish("asked", self.typed(kinds, [answer.label, answer.confidence, answer.probabilities, stays]))
        otherwise = Graph(f"exit_{k + 1}/closed/")
        unasked = otherwise.finish("unasked", self.typed(kinds, self._nothing(otherwise, seen)))
        label, confidence, probabilities, stays = graph.either(
            graph.add("Less", threshold, graph.constant(NOBODY, np.float32)), asked, unasked
        )
        return Read(label, confidence, probabilities), stays

    def _head(self, graph: Graph, k: int, seen: str, state: tuple[str, ...]) -> Read:
        head: Part = self.split.exits[k]
        (logits,) = graph.part(head, dict.fromkeys(head.inputs, seen), self.shared)
        return read(graph, self.policy.measure, k, logits, self.num_classes, state)

    def _nothing(self, graph: Graph, seen: str) -> list[str]:
        """Label, confidence and probabilities, all 0, and that every row stays."""
        rows = graph.add("Shape", seen, start=0, end=1)
        both = graph.add("Concat", rows, graph.ints(self.num_classes), axis=0)
        values = [
            (graph.constant(0, np.int64), rows),
            (graph.constant(0.0, np.float32), rows),
            (graph.constant(0.0, np.float32), both),
            (graph.constant(True, np.bool_), rows),
        ]
        return [graph.add("Expand", value, shape) for value, shape in values]

    def typed(self, kinds: Sequence[str], values: Sequence[str] | None = None) -> list["onnx.ValueInfoProto"]:
        """Outputs of a graph: what they are, and what they are called if not so."""
        from onnx import helper

        values_info = []
        for kind, name in zip(kinds, values or kinds, strict=True):
            shape: list[str | int | None] = [BATCH, self.num_classes] if kind == "probabilities" else [BATCH]
            values_info.append(helper.make_tensor_value_info(name, _TYPES[kind], shape))
        return values_info
