"""A network and its policy as one ONNX file that skips: the stages that an image does not need are not run on it.

B images, K exits, N classes. After each exit but the last stands an `If`: where rows go on, its branch gathers them,
runs the next stage on them alone, and scatters the answers of later exits into those of this one. The branch holds
the next `If`. Where no row goes on the branch does not run, and with it no kernel of any later stage.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import offramp
from offramp.certificate import Certificate
from offramp.data import Inputs
from offramp.errors import UsageError
from offramp.export.graph import BOOL, FLOAT, INT64, UINT8, Graph, Part, Parts, checked, content, value_info
from offramp.export.int8 import Int8
from offramp.export.pixels import PIXELS, prepare
from offramp.export.reading import Read, read
from offramp.export.stage_files import check_policy
from offramp.export.tracing import parts
from offramp.network import EarlyExitNet
from offramp.policy import NOBODY, PATIENCE, Policy
from offramp.storage import weights_hash, write_atomically

if TYPE_CHECKING:
    import onnx

IMAGES, THRESHOLDS = "images", "thresholds"
OUTPUTS = ("label", "exit", "confidence", "probabilities")
_TYPES = {"label": INT64, "exit": INT64, "confidence": FLOAT, "probabilities": FLOAT, "stays": BOOL}


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
        policy: For this network, or for any.
        path: The file; one that is there is replaced.
        inputs: How an image becomes the input, and the names of the classes: for `preprocess` and the metadata.
        preprocess: Take pixels, and resize, scale and normalise them in the file. Pixels differ from those of
            `Inputs.read` by rounding: at most 1 of 255 where an image shrinks, 2 where it grows.
        image_shape: `(C, H, W)`, where the network does not say it.
        made: The network's `parts`, where they are there already.
        int8: What was found of them, where they are `quantized`: for the metadata.

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
    texts = _metadata(network, policy, split.image_shape, inputs, preprocess, int8)
    model = joined(split, network, policy, inputs if preprocess else None, texts)
    file = Path(path).expanduser()
    write_atomically(file, model.SerializeToString(deterministic=True))
    return file


def _metadata(
    network: EarlyExitNet,
    policy: Policy,
    image_shape: Sequence[int],
    inputs: Inputs | None,
    preprocess: bool,
    int8: Int8 | None,
) -> dict[str, str]:
    """What a file says of itself, `metadata_props` of ONNX: texts by name; lists and dictionaries are JSON.

    Always `offramp` (the version), `weights` (their hash), `how_to_call`, `policy` (thresholds, measure, found). Where
    they are known `classes`, `input` (image_shape, mean, std, resizing), `certificate` (in words), `origin` and
    `licence` (of the trunk's weights). Of a file in 8 bits `int8`, what that costs; `weights` are the network's still.
    """
    texts = {
        "offramp": offramp.__version__,
        "weights": weights_hash(network.state_dict()),
        "how_to_call": _how_to_call(network, policy, image_shape, preprocess),
        "policy": json.dumps(asdict(policy), sort_keys=True),
    }
    if inputs is not None:
        how = {key: value for key, value in asdict(inputs).items() if key != "class_names"}
        texts |= {"classes": json.dumps(inputs.class_names), "input": json.dumps(how, sort_keys=True)}
    certificate = Certificate.of(policy)
    if certificate is not None:
        texts["certificate"] = str(certificate)
    if int8 is not None:
        texts["int8"] = json.dumps(asdict(int8))
    origin = network.origin
    if origin is not None:
        texts["origin"] = json.dumps(origin, sort_keys=True)
        if origin.get("licence"):
            texts["licence"] = str(origin["licence"])
    return texts


def _how_to_call(network: EarlyExitNet, policy: Policy, image_shape: Sequence[int], preprocess: bool) -> str:
    channels, height, width = image_shape
    images = (
        "images: uint8 [B, height, width, 3], RGB pixels, all of one size, of any size."
        if preprocess
        else f"images: float32 [B, {channels}, {height}, {width}], normalised as in training (see `input`)."
    )
    K = network.num_exits
    thresholds = (
        f"thresholds (optional): float32 [{K - 1}]; an image leaves at the first exit whose confidence is at least its "
        f"threshold; {NOBODY:g} lets no image leave there. Default: those of `policy`.\n"
        if K > 1
        else ""
    )
    return (
        f"{images}\n{thresholds}"
        f"label: int64 [B], the class, from 0 (see `classes`).\n"
        f"exit: int64 [B], the exit that answered, from 0 to {K - 1}.\n"
        f"confidence: float32 [B], {policy.measure.meaning}.\n"
        f"probabilities: float32 [B, {network.num_classes}], of the exit that answered.\n"
        "Stages that no image of the batch needs are not run."
    )


def joined(
    split: Parts, network: EarlyExitNet, policy: Policy, pixels: Inputs | None, texts: Mapping[str, str]
) -> "onnx.ModelProto":
    """The model that `onnx_file` writes; with `pixels` it takes such, and with `texts` as its metadata."""
    from onnx import helper

    graph = Graph("")
    images, graph_inputs = IMAGES, [value_info(IMAGES, FLOAT, *split.image_shape)]
    if pixels is not None:
        graph_inputs = [value_info(IMAGES, UINT8, *PIXELS)]
        with graph.under("pixels/"):
            images = prepare(graph, pixels, IMAGES)
    last = len(split.stages) - 1
    if last:
        graph.constant(policy.thresholds[:-1], np.float32, THRESHOLDS)
        graph_inputs.append(helper.make_tensor_value_info(THRESHOLDS, FLOAT, [last]))
    writer = _Writer(split, network.reads, network.num_classes, policy, _shared(graph, split))
    for name, value in zip(OUTPUTS, writer.answers(graph, 0, {IMAGES: images}, ()), strict=True):
        graph.call(name, value)
    model = graph.model(writer.typed(OUTPUTS), graph_inputs)
    helper.set_model_props(model, dict(texts))
    checked(model)
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
        sides = {"probabilities": (self.num_classes,)}
        named = zip(kinds, values or kinds, strict=True)
        return [value_info(name, _TYPES[kind], *sides.get(kind, ())) for kind, name in named]
