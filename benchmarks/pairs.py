"""Variants measured side by side in one process: they take turns, so that whatever the machine does meets all alike."""

import math
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# oneDNN keeps 1,024 primitives, a network like MSDNet-7 needs 600 for a training step: variants that take turns would
# throw out each other's. Read when torch is loaded.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16384")

import torch


def take_turns(variants: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each variant in every round; the order turns around from round to round."""
    for _ in range(warmup):  # allocations and caches
        for step in variants.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants.items())
        for name, step in order if number % 2 else reversed(order):
            seconds[name].append(step())
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> dict[str, float]:
    """Median of the paired ratios, and the bounds of its one-sided 95 % intervals (`at_least`, `at_most`).

    The bounds are order statistics: nothing is assumed of the distribution.
    """
    ordered = sorted(a / b for a, b in zip(seconds, reference, strict=True))
    n = len(ordered)
    below = [sum(math.comb(n, i) for i in range(rank + 1)) / 2**n for rank in range(n)]  # P(rank or fewer below it)
    rank = max(i for i, probability in enumerate(below) if probability <= 0.05)
    return {
        "ratio": round(median(ordered), 4),
        "at_least": round(ordered[rank], 4),
        "at_most": round(ordered[n - 1 - rank], 4),
    }


def median(values: list[float]) -> float:
    """The middle value, or the mean of the middle two."""
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def conditions() -> dict[str, Any]:
    """Device, threads, versions and how busy the machine was: what a figure needs beside it."""
    return {
        "device": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """The processor's own name where the system tells it (Linux), else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
