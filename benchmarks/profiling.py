"""Where the time of a step goes, by torch's profiler: operators, by kind."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {  # of operators, by what their names have in them; the first that fits
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("convolution",),
    "batch norm and ReLU": ("batch_norm", "relu", "threshold"),
    "matrix products": ("mm", "matmul", "linear"),
    "copies": ("copy", "clone", "cat", "zero_", "fill_", "contiguous"),
}
OTHERS = "other operators"
REST = "Python and all that is no operator"


class Profiled(NamedTuple):
    """Events, and seconds on the wall's clock, which are more than without the profiler."""

    events: list[Any]
    seconds: float


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profiled(work: Callable[[], object], device: torch.device) -> Profiled:
    """Do it once, watched."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    wait_for(device)
    with profile(activities=activities) as seen:
        start = time.perf_counter()
        work()
        wait_for(device)
        seconds = time.perf_counter() - start
    return Profiled(list(seen.events() or ()), seconds)


def kind_of(operator: str) -> str:
    """What an operator, such as `aten::addmm`, is counted as."""
    return next((kind for kind, words in KINDS.items() if any(word in operator for word in words)), OTHERS)


def shares(seen: Profiled, device: torch.device) -> dict[str, float]:
    """The share of the seconds that each kind of operator took, without those that it called; they add up to 1."""
    spent = dict.fromkeys((*KINDS, OTHERS), 0.0)
    for event in seen.events:
        if "::" in event.name and event.device_type == DeviceType.CPU:
            of_itself = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
            spent[kind_of(event.name.partition("::")[2])] += of_itself / 1e6
    return {kind: s / seen.seconds for kind, s in spent.items()} | {REST: 1 - sum(spent.values()) / seen.seconds}
