"""A network's stages and exits as ONNX models, each by itself; what tracing makes and everything else here reads.

K exits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the first with reductions and antialiased resizing as torch has them; onnxruntime 1.14 runs it
IR_VERSION = 8  # what came with that opset
BATCH = "batch"  # the name of the first axis


@dataclass(frozen=True)
class Part:
    """One stage or one exit as an ONNX model.

    Attributes:
        model: With its weights.
        inputs: Names, in the order of the carry; those that it does not use are left out.
        outputs: Names, in the order of the carry.
    """

    model: "onnx.ModelProto"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """A network in parts: K stages and K exits, float32, in evaluation mode, on images of one shape `(C, H, W)`."""

    stages: tuple[Part, ...]
    exits: tuple[Part, ...]
    image_shape: tuple[int, int, int]
