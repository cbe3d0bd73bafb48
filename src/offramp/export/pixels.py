"""From pixels to a network's input as ONNX nodes: what `data.Inputs` does, resize, scale and normalise.

B images of a batch, all of one size; C channels, H and W pixels of the network's input.
"""

from collections.abc import Sequence

import numpy as np

from offramp.data import Inputs
from offramp.export.graph import Graph

PIXELS = ("height", "width", 3)  # after the first axis: uint8, RGB
_UINT8, _FLOAT, _INT32, _INT64, _DOUBLE = 2, 1, 6, 7, 11  # ONNX's numbers
_RESIZE_RATIO = 256 / 224


def prepare(graph: Graph, inputs: Inputs, pixels: str) -> str:
    """The network's input, float32 `[B, C, H, W]`, from `pixels`, uint8 `[B, height, width, 3]`."""
    images = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    if inputs.image_shape[0] == 1:
        images = _grey(graph, images)
    sides = graph.several("Split", graph.add("Shape", images, start=2, end=4), outputs=2, axis=0, num_outputs=2)
    height, width = (graph.add("Cast", side, to=_DOUBLE) for side in sides)  # as Python reckons
    size = inputs.image_shape[1:]
    if inputs.resizing == "central-cut":
        images = _central_cut(graph, images, height, width, size[0])
    else:
        images = _central_fit(graph, images, height, width, size)
    scaled = graph.add("Div", graph.add("Cast", images, to=_FLOAT), graph.constant(255.0, np.float32))
    mean, std = (graph.constant(np.reshape(values, (-1, 1, 1)), np.float32) for values in (inputs.mean, inputs.std))
    return graph.add("Div", graph.add("Sub", scaled, mean), std)


def _grey(graph: Graph, images: str) -> str:
    """Luma in whole numbers, as `data.augment.grey` has it."""
    shares = graph.constant(np.reshape([19595, 38470, 7471], (1, 3, 1, 1)), np.int32)
    weighted = graph.add("Mul", graph.add("Cast", images, to=_INT32), shares)
    luma = graph.add("ReduceSum", weighted, graph.ints(1), keepdims=1)
    rounded = graph.add("Add", luma, graph.constant(32768, np.int32))
    return graph.add("Cast", graph.add("Div", rounded, graph.constant(65536, np.int32)), to=_UINT8)


def _whole(graph: Graph, number: str) -> str:
    return graph.add("Cast", number, to=_INT64)


def _double(graph: Graph, number: float) -> str:
    return graph.constant([number], np.float64)


def _resize(graph: Graph, images: str, height: str, width: str) -> str:
    """As torch resizes bytes: bilinear, antialiased, and what lies outside counts nothing."""
    size = graph.add("Concat", height, width, axis=0)
    return graph.add(
        "Resize",
        images,
        "",
        "",
        size,
        mode="linear",
        antialias=1,
        exclude_outside=1,
        axes=[2, 3],
        coordinate_transformation_mode="half_pixel",
    )


def _cut(graph: Graph, images: str, corner: Sequence[str], size: Sequence[str]) -> str:
    start = graph.add("Concat", *corner, axis=0)
    end = graph.add("Add", start, graph.add("Concat", *size, axis=0))
    return graph.add("Slice", images, start, end, graph.ints(2, 3))


def _central_cut(graph: Graph, images: str, height: str, width: str, image_size: int) -> str:
    """As `data.augment.central_cut`: the shorter side resized, the centre cut out."""
    shorter = _double(graph, round(image_size * _RESIZE_RATIO))
    least = graph.add("Min", height, width)
    half, side = _double(graph, 2.0), _double(graph, image_size)
    resized, corner = [], []
    for length in (height, width):
        # shorter * longer / shorter rounded down; exactly `shorter` where it is the shorter side
        new = graph.add("Floor", graph.add("Div", graph.add("Mul", shorter, length), least))
        resized.append(_whole(graph, new))
        corner.append(_whole(graph, graph.add("Round", graph.add("Div", graph.add("Sub", new, side), half))))
    images = _resize(graph, images, *resized)
    return _cut(graph, images, corner, [graph.ints(image_size)] * 2)


def _central_fit(graph: Graph, images: str, height: str, width: str, size: tuple[int, int]) -> str:
    """As `data.augment.central_fit`: the largest central crop of the aspect, resized."""
    one, two = _double(graph, 1.0), _double(graph, 2.0)
    kept, corner = [], []
    for length, other, (ours, theirs) in ((height, width, size), (width, height, size[::-1])):
        of_aspect = graph.add("Div", graph.add("Mul", other, _double(graph, ours)), _double(graph, theirs))
        most = graph.add("Min", length, graph.add("Round", of_aspect))
        keep = graph.add("Max", one, most)
        kept.append(_whole(graph, keep))
        corner.append(_whole(graph, graph.add("Floor", graph.add("Div", graph.add("Sub", length, keep), two))))
    images = _cut(graph, images, corner, kept)
    return _resize(graph, images, *(graph.ints(side) for side in size))
