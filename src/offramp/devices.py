"""Where things are computed: a device by name, its name in words, and the ways there and back without waiting."""

import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def with_threads(wanted: int | None) -> Iterator[None]:
    """So many CPU threads of torch within it, and as many as before afterwards. None: as many as there are."""
    if wanted is None:
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def with_kernels(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """A GPU's kernels within it: deterministic where torch has such (it warns where not), or the fastest.

    Afterwards torch chooses as before. A CPU needs nothing.
    """
    if device.type != "cuda":
        yield
        return
    asked_for, workspace = "CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    tried = torch.backends.cudnn.benchmark
    try:
        if deterministic:
            os.environ.setdefault(asked_for, ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = not deterministic  # tries all that fit a convolution, once
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        torch.backends.cudnn.benchmark = tried
        if workspace is None:
            os.environ.pop(asked_for, None)


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


class PendingCopy:
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
