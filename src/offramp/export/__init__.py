"""Networks for other runtimes: ONNX and torch.export."""

from offramp.export.stage_files import ExitFile, StageFile, Stages, stages
from offramp.export.tracing import parts

__all__ = ["ExitFile", "StageFile", "Stages", "parts", "stages"]
