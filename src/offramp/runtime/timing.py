"""Variants measured side by side in one process: they take turns, so that whatever the machine does meets all alike."""

import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch

from offramp.devices import describe_device, processor_name
from offramp.errors import UsageError

Name = TypeVar("Name", bound=Hashable)
KERNELS_KEPT = 1024  # by oneDNN, where it is not told otherwise


def take_turns(
    variants: Mapping[Name, Callable[[], float]],
    rounds: int,
    warmup: int = 2,
    after_round: Callable[[], object] = lambda: None,
) -> dict[Name, list[float]]:
    """Seconds of each variant, which says how many it took, in every round; the order turns around each time.

    Args:
        warmup: Rounds before them that are not counted: allocations and caches.
        after_round: Called after each round, these included, while nothing is timed.
    """
    for _ in range(warmup):
        for step in variants.values():
            step()
        after_round()
    seconds: dict[Name, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants.items())
        for name, step in order if number % 2 else reversed(order):
            seconds[name].append(step())
        after_round()
    return seconds


def ratio(seconds: Sequence[float], reference: Sequence[float], level: float = 0.05) -> dict[str, float]:
    """Median of the paired ratios, and the bounds of its one-sided intervals (`at_least`, `at_most`).

    The bounds are order statistics: nothing is assumed of the distribution. Each by itself is wrong with probability
    `level` at most.

    Raises:
        UsageError: Too few rounds for bounds of this level: n rounds allow none below 1 / 2^n.
    """
    ordered = sorted(a / b for a, b in zip(seconds, reference, strict=True))
    n = len(ordered)
    below = [sum(math.comb(n, i) for i in range(rank + 1)) / 2**n for rank in range(n)]  # P(rank or fewer below it)
    ranks = [i for i, probability in enumerate(below) if probability <= level]
    if not ranks:
        needed = math.ceil(-math.log2(level))
        raise UsageError(f"{n} rounds are too few for an interval that is wrong with probability {level:g}: {needed}.")
    return {
        "ratio": round(median(ordered), 4),
        "at_least": round(ordered[ranks[-1]], 4),
        "at_most": round(ordered[n - 1 - ranks[-1]], 4),
    }


def kernels_kept(device: torch.device) -> int | None:
    """How many kernels oneDNN keeps; None where it is not what computes."""
    if device.type != "cpu":
        return None
    wanted = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    try:
        return int(wanted)
    except ValueError as error:
        raise UsageError(f"ONEDNN_PRIMITIVE_CACHE_CAPACITY must be a whole number, not {wanted!r}.") from error


def conditions(device: torch.device | None = None) -> dict[str, Any]:
    """Device (by default the processor), threads, kernels kept, versions and load: what a figure needs beside it."""
    device = torch.device("cpu") if device is None else device
    return {
        "device": processor_name() if device.type == "cpu" else describe_device(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels_kept": kernels_kept(device),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        **{package: version(package) for package in ("onnxruntime", "openvino")},
        "python": platform.python_version(),
    }


def version(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
