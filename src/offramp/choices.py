"""Choices by name, as options, rooms and files have them. Nothing here imports torch."""

from typing import Literal

Backend = Literal["torch", "onnxruntime", "openvino"]
Precision = Literal["float32", "bf16", "int8"]
Loss = Literal["regret", "early-error", "drop"]
MeasureName = Literal["softmax", "margin", "entropy", "patience"]
Plots = Literal["svg", "png"]
