"""Stages that follow each other, with an exit at their end, as one ONNX model: what a runtime is given as a whole."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from offramp.export.graph import Graph
from offramp.export.part import BATCH, IR_VERSION, OPSET, Part, Parts
from offramp.export.reading import read
from offramp.policy import Measure

if TYPE_CHECKING:
    import onnx

LOGITS, MARK = "logits", "mark"
FLOAT, INT64 = 1, 7  # of ONNX


class Reading(NamedTuple):
    """How an exit's answer is read off its logits within the model: by a measure that remembers nothing of an image."""

    measure: Measure
    num_classes: int


def chain(
    parts: Parts,
    reads: Sequence[int],
    first: int,
    last: int,
    *,
    exit: bool,
    carry: bool,
    reading: Reading | None = None,
) -> "onnx.ModelProto":
    """Stages `first` to `last` (from 0) in one model, for any number of rows.

    Inputs are those of the carry before stage `first` that the stage reads, by their names. Outputs are the logits of
    exit `last` where it is wanted, and the tensors of the carry after stage `last`, in their order, where they are.

    Args:
        parts: The network's.
        reads: Index into the carry of what each exit reads.
        first: First stage.
        last: Last stage.
        exit: Whether the exit behind stage `last` is part of it.
        carry: Whether what stage `last` passes on is given.
        reading: With it the exit gives `label` (int64) and `confidence` (float32), each `[B]`, in place of logits.
            `mark` `[B]`, 0 or NaN, is one more input then, the last one, and is added to logits and confidence.
    """
    from onnx import helper

    graph = Graph("")
    stage = parts.stages[first]
    values = {name: name for name in stage.inputs}
    for k in range(first, last + 1):
        stage = parts.stages[k]
        with graph.under(f"stage_{k + 1}/"):
            carry_out = graph.part(stage, values, {})
        values = dict(zip(stage.outputs, carry_out, strict=True))
    outputs = []
    inputs = list(parts.stages[first].model.graph.input)
    if exit:
        head = parts.exits[last]
        with graph.under(f"exit_{last + 1}/"):
            (logits,) = graph.part(head, dict.fromkeys(head.inputs, carry_out[reads[last]]), {})
            if reading is None:
                graph.call(LOGITS, logits)
                outputs.append(_named(head, head.outputs[0], LOGITS))
            else:
                inputs.append(helper.make_tensor_value_info(MARK, FLOAT, [BATCH]))
                marked = graph.add("Add", logits, graph.add("Unsqueeze", MARK, graph.ints(1)))
                answer = read(graph, reading.measure, last, marked, reading.num_classes, ())
                for name, value, kind in (
                    ("label", answer.label, INT64),
                    ("confidence", graph.add("Add", answer.confidence, MARK), FLOAT),
                ):
                    graph.call(name, value)
                    outputs.append(helper.make_tensor_value_info(name, kind, [BATCH]))
    for number, value in enumerate(carry_out if carry else ()):
        graph.call(f"carry_{number}", value)  # a name of its own: it may be an input that is passed on
        outputs.append(_named(stage, stage.outputs[number], f"carry_{number}"))
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph.finish("offramp", outputs, inputs), ir_version=IR_VERSION, opset_imports=opset)


def _named(part: Part, output: str, name: str) -> "onnx.ValueInfoProto":
    """The type of a part's output, under another name."""
    (value,) = (value for value in part.model.graph.output if value.name == output)
    renamed: onnx.ValueInfoProto = type(value)()
    renamed.CopyFrom(value)
    renamed.name = name
    return renamed
