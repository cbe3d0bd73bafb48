"""Networks for other runtimes: ONNX and torch.export."""

from offramp.export.graph import Part, Parts
from offramp.export.int8 import Int8, compared, quantized, uncertified
from offramp.export.one_file import onnx_file
from offramp.export.packages import torch_packages
from offramp.export.stage_files import ExitFile, StageFile, Stages, stages
from offramp.export.tracing import parts

__all__ = [
    "ExitFile",
    "Int8",
    "Part",
    "Parts",
    "StageFile",
    "Stages",
    "compared",
    "onnx_file",
    "parts",
    "quantized",
    "stages",
    "torch_packages",
    "uncertified",
]
