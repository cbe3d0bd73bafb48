"""A file for each stage with its exit, for a runtime that walks them itself: one image, shown exit by exit.

Such a runtime has to compare a confidence with a threshold; all else is in the files. Pixels become the network's input
in the first, and each reads its exit's logits as the measure does. They connect by names: each wants some of what those
before it gave.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from offramp.data import Inputs
from offramp.export.graph import FLOAT, INT64, UINT8, Graph, Parts, checked, value_info
from offramp.export.one_file import IMAGES
from offramp.export.pixels import PIXELS, prepare
from offramp.export.reading import read
from offramp.network import EarlyExitNet
from offramp.policy import Measure

if TYPE_CHECKING:
    import onnx


def levels(split: Parts, network: EarlyExitNet, measure: Measure, inputs: Inputs) -> "Iterator[onnx.ModelProto]":
    """The models, in turn.

    The first takes `images`, uint8 `[B, height, width, 3]`, RGB pixels of any size; each of the others what it needs of
    the carry of the stage before, and what the measure remembers. Each gives `label` `[B]` (int64, from 0),
    `confidence` `[B]` in the measure's units, `probabilities` `[B, N]`, and what the next one takes.
    """
    taken = [value_info(IMAGES, UINT8, *PIXELS)]
    state: tuple[str, ...] = ()
    last = len(split.stages) - 1
    for k, (stage, head) in enumerate(zip(split.stages, split.exits, strict=True)):
        graph = Graph("")
        carry = {value.name: value.name for value in taken}
        if k == 0:
            with graph.under("pixels/"):
                carry = {IMAGES: prepare(graph, inputs, IMAGES)}
        with graph.under(f"stage_{k + 1}/"):
            outputs = graph.part(stage, {name: carry[name] for name in stage.inputs}, {})
        with graph.under(f"exit_{k + 1}/"):
            (logits,) = graph.part(head, dict.fromkeys(head.inputs, outputs[network.reads[k]]), {})
            answer = read(graph, measure, k, logits, network.num_classes, state)
        answers = [
            (answer.label, value_info("label", INT64)),
            (answer.confidence, value_info("confidence", FLOAT)),
            (answer.probabilities, value_info("probabilities", FLOAT, network.num_classes)),
        ]
        passed = []
        if k < last:
            wanted = set(split.stages[k + 1].inputs)
            types = {value.name: value for value in stage.model.graph.output}
            passed += [(o, types[name]) for o, name in zip(outputs, stage.outputs, strict=True) if name in wanted]
            # Of a measure that remembers: the label, and how often in a row it was that.
            state = tuple(f"state_{k + 1}_{i}" for i in range(len(answer.state)))
            kinds = zip(answer.state, state, (INT64, FLOAT), strict=False)
            passed += [(value, value_info(name, kind)) for value, name, kind in kinds]
        for value, called in (*answers, *passed):
            graph.call(called.name, value)
        model = graph.model([called for _, called in (*answers, *passed)], taken)
        checked(model)
        yield model
        taken = [called for _, called in passed]
