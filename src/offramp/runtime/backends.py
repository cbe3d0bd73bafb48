"""The backends there are: one file each. A new one is a file and a line below."""

import sys
import weakref
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from offramp.choices import Backend
from offramp.network import EarlyExitNet
from offramp.runtime import file_cache
from offramp.runtime.images import spread
from offramp.runtime.onnxruntime_ import OnnxRuntime
from offramp.runtime.openvino_ import OpenVino
from offramp.runtime.program import Form, Program
from offramp.runtime.torch_ import TorchProgram

PROGRAMS: Mapping[Backend, Callable[[EarlyExitNet, Form, torch.device | None], Program]] = {
    "torch": TorchProgram,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
NEEDS: Mapping[Backend, tuple[str, ...]] = {
    "torch": (),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
"""Packages that a backend needs, by the names they are imported by."""
CALIBRATED = 512  # images, at most

_alive: "weakref.WeakValueDictionary[Any, Program]" = weakref.WeakValueDictionary()


def make_program(network: EarlyExitNet, form: Form, device: torch.device | None = None) -> Program:
    """A network, run as a form says. What a library has compiled is shared by all who run the same network so."""
    if form.backend == "torch":
        return TorchProgram(network, form, device)
    scales = file_cache.scales_of(file_cache.find_int8(network)) if form.precision == "int8" else None
    key = file_cache.folder_for(network), form, scales, device, torch.get_num_threads()
    program = _alive.get(key)
    if program is None:
        _alive[key] = program = PROGRAMS[form.backend](network, form, device)
    return program


def calibrate(network: EarlyExitNet, images_SCHW: Tensor) -> str:
    """Make a network's files in int8, with scales from what it makes of these images; kept on this machine.

    From then on `Form("openvino", "int8")` and `Form("onnxruntime", "int8")` run it with these scales.

    Args:
        images_SCHW: Like those to come, a few hundred, normalised as in training, and none that results are reported
            on. Of more than 512 so many are used, evenly spread.

    Returns:
        What the scales are called: a hash of the files.

    Raises:
        UsageError: The network cannot be exported, onnxruntime is not installed, images of another shape.
    """
    make_program(network, Form("onnxruntime"))  # makes the files in float32, or compares those kept with the network
    return file_cache.scales_of(file_cache.make_int8(network, spread(images_SCHW, CALIBRATED)))


def is_installed(backend: Backend) -> bool:
    """Whether what a backend needs is there."""
    return all(sys.modules.get(name, True) is not None and find_spec(name) is not None for name in NEEDS[backend])


def usual_forms(
    device: torch.device, *, backend: Literal["auto", Backend] = "auto", bf16: bool = False
) -> tuple[Form, ...]:
    """The forms worth trying on a device, in float32 and, if wanted, in bf16; `auto`: of all backends installed.

    On a GPU that is torch's alone.
    """
    if backend != "auto":
        names = [backend]
    else:
        names = [name for name in PROGRAMS if name == "torch" or (device.type == "cpu" and is_installed(name))]
    return (*map(Form, names), *(Form(name, "bf16") for name in names if bf16 and name != "onnxruntime"))
