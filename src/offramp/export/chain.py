"""Stages that follow each other, with an exit at their end, as one ONNX model: what a runtime is given as a whole."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from offramp.export.graph import FLOAT, INT64, Graph, Part, Parts, value_info
from offramp.export.reading import read
from offramp.policy import Measure

if TYPE_CHECKING:
    import onnx

LOGITS, MARK = "logits", "mark"


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
        reads: Index into the carry of what each exit reads.
        exit: Whether the exit behind stage `last` is part of it.
        carry: Whether what stage `last` passes on is given.
        reading: With it the exit gives `label` (int64) and `confidence` (float32), each `[B]`, in place of logits.
            `mark` `[B]`, 0 or NaN, is one more input then, the last one, and is added to logits and confidence.
    """
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
                inputs.append(value_info(MARK, FLOAT))
                marked = graph.add("Add", logits, graph.add("Unsqueeze", MARK, graph.ints(1)))
                answer = read(graph, reading.measure, last, marked, reading.num_classes, ())
                for name, value, kind in (
                    ("label", answer.label, INT64),
                    ("confidence", graph.add("Add", answer.confidence, MARK), FLOAT),
                ):
                    graph.call(name, value)
                    outputs.append(value_info(name, kind))
    for number, value in enumerate(carry_out if carry else ()):
        graph.call(f"carry_{number}", value)  # a name of its own: it may be an input that is passed on
        outputs.append(_named(stage, stage.outputs[number], f"carry_{number}"))
    return graph.model(outputs, inputs)


def _named(part: Part, output: str, name: str) -> "onnx.ValueInfoProto":
    """The type of a part's output, under another name."""
    (value,) = (value for value in part.model.graph.output if value.name == output)
    renamed: onnx.ValueInfoProto = type(value)()
    renamed.CopyFrom(value)
    renamed.name = name
    return renamed
