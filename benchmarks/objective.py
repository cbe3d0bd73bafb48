"""What an objective costs: a whole training step under dynamic power-sqrt against one under plain cross-entropy.

    python benchmarks/objective.py [--pairs 60] [--batch-size 64] [--threads 2]

MSDNet-7 for CIFAR-100 on random images; forward, loss, backward, SGD. The two networks (with and without the damping
neuron) take turns in one process, the order within a pair changing, so that whatever else the machine does meets both
alike. Prints one JSON object; `ratio` is the median of the paired ratios, `at_least` and `at_most` the bounds of its
one-sided 95 % intervals.
"""

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import torch

from offramp.backbones import msdnet
from offramp.objectives import CrossEntropy, Objective, dynamic


def make_step(objective: Objective, *, damping: bool, images_BCHW: torch.Tensor, targets_B: torch.Tensor):
    """A function that trains for one step and returns its seconds."""
    torch.manual_seed(0)
    network = msdnet(exits=7, num_classes=100, damping=damping).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        objective(network(images_BCHW), targets_B).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def median_with_bounds(values: list[float]) -> tuple[float, float, float]:
    """Median, and its lower and upper one-sided 95 % bounds (order statistics; no assumption on the distribution)."""
    ordered, n = sorted(values), len(values)
    below = [sum(math.comb(n, i) for i in range(rank + 1)) / 2**n for rank in range(n)]  # P(rank or fewer below it)
    rank = max(i for i, probability in enumerate(below) if probability <= 0.05)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return middle, ordered[rank], ordered[n - 1 - rank]


def cpu_name() -> str:
    """The processor's own name where the system tells it (Linux), else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="pairs of steps (at least 5)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images_BCHW = torch.randn(options.batch_size, 3, 32, 32)
    targets_B = torch.randint(100, (options.batch_size,))
    batch = {"images_BCHW": images_BCHW, "targets_B": targets_B}
    plain, ours = make_step(CrossEntropy(), damping=False, **batch), make_step(dynamic(), damping=True, **batch)
    load_before = os.getloadavg()[0]
    for step in (plain, ours, plain, ours):  # allocations and caches
        step()
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for pair in range(options.pairs):
        order = [("plain", plain), ("ours", ours)]
        for name, step in order if pair % 2 else reversed(order):
            seconds[name].append(step())
    ratio, at_least, at_most = median_with_bounds(
        [b / a for a, b in zip(seconds["plain"], seconds["ours"], strict=True)]
    )
    report = {
        "what": "training step, dynamic power-sqrt over cross-entropy, MSDNet-7 CIFAR-100",
        "ratio": round(ratio, 4),
        "at_least": round(at_least, 4),
        "at_most": round(at_most, 4),
        "seconds_cross_entropy": round(sorted(seconds["plain"])[options.pairs // 2], 4),
        "seconds_dynamic": round(sorted(seconds["ours"])[options.pairs // 2], 4),
        "pairs": options.pairs,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "device": cpu_name(),
        "cores": os.cpu_count(),
        "load_average_before": round(load_before, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
