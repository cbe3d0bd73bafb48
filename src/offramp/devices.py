"""Where things are computed: a device by name, and its name in words."""

import torch

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
