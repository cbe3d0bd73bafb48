"""Where things are computed: a device by name, its name in words, and the ways there and back without waiting."""

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

from offramp.errors import UsageError


def device_named(wanted: str) -> torch.device:
    """Device for `auto` (a CUDA GPU where there is one), `cpu`, `cuda` or `cuda:N`. One that is not here is refused."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"There is no device {wanted!r}; use auto, cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"Device {wanted!r} is not supported; use auto, cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"Device {wanted!r} was asked for, and torch sees no CUDA GPU here; use cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"Device {wanted!r} was asked for, and torch sees {torch.cuda.device_count()} CUDA GPUs here.")
    return device


def describe_device(device: torch.device) -> str:
    """A device in words: `cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor_name() -> str:
    """The processor's own name where the system tells it (Linux), else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def has_room(device: torch.device, size: int) -> bool:
    """Whether `size` bytes are at most a quarter of what is free on a GPU; anywhere else they are taken to be."""
    return device.type != "cuda" or 4 * size <= torch.cuda.mem_get_info(device)[0]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU, on `device`. Nobody waits: what is computed there later finds it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # out of other memory a copy waits for the device, `non_blocking` or not
    return tensor.to(device, non_blocking=True)


def borrowed(tensor: Tensor, device: torch.device) -> Tensor:
    """Somebody else's tensor, on `device`: when this returns, whose it is may write into it again.

    Out of pinned memory a copy is only told to the device. So it is made beside the device's work and waited for, by
    itself. Out of other memory it is over by then.
    """
    if device.type != "cuda" or tensor.is_cuda or not tensor.is_pinned():
        return tensor.to(device)
    beside = _beside(device)
    with torch.cuda.stream(beside):
        here = tensor.to(device, non_blocking=True)
    beside.synchronize()
    here.record_stream(torch.cuda.current_stream(device))  # or the memory would be used again before it is read
    return here


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class OnItsWay:
    """A tensor of a device on its way to the CPU.

    Reading it waits for what the device was told before this was made, and for nothing that it was told since: a plain
    copy stands in the same queue as the work, and waits for all of it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._here = tensor.to("cpu", non_blocking=True)  # a GPU's: into pinned memory
        self._arrived = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The tensor, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._here
