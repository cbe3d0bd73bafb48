"""From pixels to a network's input as ONNX nodes: what `data.Inputs` does, resize, scale and normalise.

B images of a batch, all of one size; C channels, H and W pixels of the network's input.
"""

import numpy as np

from offramp.data import Inputs
from offramp.data.augment import central_box
from offramp.export.graph import DOUBLE, FLOAT, INT32, INT64, UINT8, Graph

PIXELS = ("height", "width", 3)  # after the first axis: uint8, RGB


def prepare(graph: Graph, inputs: Inputs, pixels: str) -> str:
    """The network's input, float32 `[B, C, H, W]`, from `pixels`, uint8 `[B, height, width, 3]`."""
    images = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    if inputs.image_shape[0] == 1:
        images = _grey(graph, images)
    sides = graph.add("Shape", images, start=2, end=4)
    size = inputs.image_shape[1:]
    if inputs.resizing == "central-cut":
        images = _central_cut(graph, images, sides, size[0])
    else:
        images = _central_fit(graph, images, sides, size)
    scaled = graph.add("Div", graph.add("Cast", images, to=FLOAT), graph.constant(255.0, np.float32))
    mean, std = (graph.constant(np.reshape(values, (-1, 1, 1)), np.float32) for values in (inputs.mean, inputs.std))
    return graph.add("Div", graph.add("Sub", scaled, mean), std)


def _grey(graph: Graph, images: str) -> str:
    """Luma in whole numbers, as `data.augment.grey` has it."""
    shares = graph.constant(np.reshape([19595, 38470, 7471], (1, 3, 1, 1)), np.int32)
    weighted = graph.add("Mul", graph.add("Cast", images, to=INT32), shares)
    luma = graph.add("ReduceSum", weighted, graph.ints(1), keepdims=1)
    rounded = graph.add("Add", luma, graph.constant(32768, np.int32))
    return graph.add("Cast", graph.add("Div", rounded, graph.constant(65536, np.int32)), to=UINT8)


# Sides, sizes and corners are [height, width], in one value.


def _half(graph: Graph, sides: str) -> str:
    """Half of whole numbers, as doubles."""
    return graph.add("Div", graph.add("Cast", sides, to=DOUBLE), graph.constant(2.0, np.float64))


def _resize(graph: Graph, images: str, size: str) -> str:
    """As torch resizes bytes: bilinear, antialiased, and what lies outside counts nothing."""
    # All four sides: of two that are not constants, with `axes`, onnxruntime says that there are none.
    sides = graph.add("Concat", graph.add("Shape", images, start=0, end=2), size, axis=0)
    how = {"mode": "linear", "antialias": 1, "exclude_outside": 1, "coordinate_transformation_mode": "half_pixel"}
    return graph.add("Resize", images, "", "", sides, **how)


def _cut(graph: Graph, images: str, corner: str, size: str) -> str:
    return graph.add("Slice", images, corner, graph.add("Add", corner, size), graph.ints(2, 3))


def _central_cut(graph: Graph, images: str, sides: str, image_size: int) -> str:
    """As `data.augment.central_cut`: the shorter side resized, the centre cut out."""
    (shorter, _), _ = central_box(1, 1, image_size)
    least = graph.add("ReduceMin", sides, keepdims=1)
    resized = graph.add("Div", graph.add("Mul", sides, graph.ints(shorter)), least)  # whole numbers: rounded down
    size = graph.ints(image_size, image_size)
    corner = graph.add("Round", _half(graph, graph.add("Sub", resized, size)))  # to even, as Python does
    return _cut(graph, _resize(graph, images, resized), graph.add("Cast", corner, to=INT64), size)


def _central_fit(graph: Graph, images: str, sides: str, size: tuple[int, int]) -> str:
    """As `data.augment.central_fit`: the largest central crop of the aspect, resized."""
    others = graph.add("Cast", graph.add("Gather", sides, graph.ints(1, 0), axis=0), to=DOUBLE)
    ours, theirs = (graph.constant(values, np.float64) for values in (size, size[::-1]))
    of_aspect = graph.add("Round", graph.add("Div", graph.add("Mul", others, ours), theirs))
    most = graph.add("Min", sides, graph.add("Cast", of_aspect, to=INT64))
    kept = graph.add("Max", graph.ints(1, 1), most)
    corner = graph.add("Cast", graph.add("Floor", _half(graph, graph.add("Sub", sides, kept))), to=INT64)
    return _resize(graph, _cut(graph, images, corner, kept), graph.ints(*size))
