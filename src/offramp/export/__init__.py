"""Networks for other runtimes: ONNX and torch.export."""

from offramp.export.one_file import onnx_file
from offramp.export.packages import torch_packages
from offramp.export.stage_files import ExitFile, StageFile, Stages, stages
from offramp.export.tracing import Part, Parts, parts

__all__ = ["ExitFile", "Part", "Parts", "StageFile", "Stages", "onnx_file", "parts", "stages", "torch_packages"]
