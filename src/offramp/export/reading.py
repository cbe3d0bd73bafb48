"""The arithmetic of a `Measure` as ONNX nodes: from logits to probabilities, answer and confidence.

Node for node what `policy.py` computes. B rows, N classes, C outputs of an exit.
"""

import math
from dataclasses import dataclass

import numpy as np

from offramp.export.graph import BOOL, FLOAT, Graph
from offramp.policy import PATIENCE, Measure


@dataclass(frozen=True)
class Read:
    """What an exit says, as names of values.

    Attributes:
        label: `[B]`, int64.
        confidence: `[B]`, float32.
        probabilities: `[B, N]`, float32.
        state: What the measure remembers of each row, batch first.
    """

    label: str
    confidence: str
    probabilities: str
    state: tuple[str, ...] = ()


def read(graph: Graph, measure: Measure, k: int, logits: str, num_classes: int, state: tuple[str, ...]) -> Read:
    """Read exit k's logits `[B, C]`; at the first exit there is no state."""
    if measure.temperatures is not None:
        logits = graph.add("Div", logits, graph.constant(measure.temperatures[k], np.float32))
    log_probs = _log_probs(graph, logits, num_classes, measure.renormalise)
    probs = graph.add("Exp", log_probs)
    label = graph.add("ArgMax", log_probs, axis=1, keepdims=0)
    if measure.name == PATIENCE:
        confidence, state = _agreements(graph, label, log_probs, state)
        return Read(label, confidence, probs, state)
    confidence = {"softmax": _softmax, "margin": _margin, "entropy": _negative_entropy}[measure.name](
        graph, probs, num_classes
    )
    return Read(label, confidence, probs)


def _log_probs(graph: Graph, logits: str, num_classes: int, renormalise: bool) -> str:
    def classes(values: str) -> str:
        return graph.add("Slice", values, graph.ints(0), graph.ints(num_classes), graph.ints(1))

    if renormalise:
        return graph.add("LogSoftmax", classes(logits), axis=1)
    return classes(graph.add("LogSoftmax", logits, axis=1))


def _softmax(graph: Graph, probs: str, num_classes: int) -> str:
    return graph.add("ReduceMax", probs, graph.ints(1), keepdims=0)


def _margin(graph: Graph, probs: str, num_classes: int) -> str:
    # Not by TopK: onnxruntime-web divides by zero in it where there are no rows.
    answer = graph.add("ArgMax", probs, axis=1, keepdims=1)
    is_answer = graph.add("Equal", answer, graph.ints(*range(num_classes)))
    others = graph.add("Where", is_answer, graph.constant(-1.0, np.float32), probs)
    first, second = (graph.add("ReduceMax", values, graph.ints(1), keepdims=0) for values in (probs, others))
    return graph.add("Sub", first, second)


def _negative_entropy(graph: Graph, probs: str, num_classes: int) -> str:
    classes = graph.add("ReduceSum", probs, graph.ints(1), keepdims=0)
    of_all = graph.add("ReduceSum", _minus_entropy(graph, probs), graph.ints(1), keepdims=0)
    of_classes = graph.add("Sub", _minus_entropy(graph, classes), of_all)  # entropy of the classes, times their share
    left = graph.add("Sub", graph.constant(1.0, np.float32), classes)
    of_neuron = graph.add("Mul", left, graph.constant(math.log(num_classes), np.float32))
    return graph.add("Neg", graph.add("Add", of_classes, of_neuron))


def _minus_entropy(graph: Graph, shares: str) -> str:
    """p log p, and 0 where p is 0; NaN stays NaN."""
    zero = graph.constant(0.0, np.float32)
    product = graph.add("Mul", shares, graph.add("Log", shares))
    return graph.add("Where", graph.add("Equal", shares, zero), zero, product)


def _agreements(graph: Graph, label: str, log_probs: str, state: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """How often in a row exits agreed, up to this one; and the label and the count, where a row is not broken."""
    nan = graph.add("Cast", graph.add("IsNaN", log_probs), to=FLOAT)
    broken = graph.add("Cast", graph.add("ReduceMax", nan, graph.ints(1), keepdims=0), to=BOOL)
    zero = graph.constant(0.0, np.float32)
    run = graph.add("Expand", zero, graph.add("Shape", label))
    if state:
        label_before, run_before = state
        more = graph.add("Add", run_before, graph.constant(1.0, np.float32))
        run = graph.add("Where", graph.add("Equal", label, label_before), more, zero)
    confidence = graph.add("Where", broken, graph.constant(math.nan, np.float32), run)
    no_label = graph.constant(-1, np.int64)
    return confidence, (graph.add("Where", broken, no_label, label), graph.add("Where", broken, zero, run))
