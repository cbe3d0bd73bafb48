"""What a training step costs: the objective, the precision, the memory layout.

    python benchmarks/training_step.py [--rounds 30] [--batch-size 64] [--threads 2]

MSDNet-7 for CIFAR-100 on random images; forward, loss, backward, SGD. Prints one JSON object: seconds of the median
step, and the ratio over cross-entropy in float32.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import torch

from offramp import objectives
from offramp.backbones import msdnet
from offramp.data import Batch
from offramp.engine.timing import conditions, ratio, take_turns
from offramp.rules import Standard, Workbench

VARIANTS = {  # name -> objective, precision, channels-last; the first is what the others are compared with
    "cross-entropy float32": (objectives.CrossEntropy(), "float32", False),
    "dynamic power-sqrt float32": (objectives.dynamic(), "float32", False),
    "dynamic power-sqrt float32 channels-last": (objectives.dynamic(), "float32", True),
    "dynamic power-sqrt bf16": (objectives.dynamic(), "bf16", False),
    "dynamic power-sqrt bf16 channels-last": (objectives.dynamic(), "bf16", True),
}


def make_step(
    objective: objectives.Objective, precision: str, channels_last: bool, batch: Batch
) -> Callable[[], float]:
    """A function that trains for one step, as `offramp.fit` does, and returns its seconds."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = msdnet(exits=7, num_classes=100, damping=objective.damping_neuron == "required")
    network.train().to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    rule.prepare(Workbench(network, network, objective, optimizer, precision))
    batch = batch._replace(images_BCHW=batch.images_BCHW.to(memory_format=layout))

    def step() -> float:
        start = time.perf_counter()
        rule.step(batch, progress=0.0)
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="steps of each variant (at least 5)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = options.batch_size
    batch = Batch(torch.randn(size, 3, 32, 32), torch.randint(100, (size,)), torch.arange(size), size)
    before = conditions()
    seconds = take_turns({name: make_step(*variant, batch) for name, variant in VARIANTS.items()}, options.rounds)
    reference = seconds[next(iter(VARIANTS))]
    report = {
        "what": "training step, MSDNet-7 CIFAR-100",
        "batch_size": size,
        "rounds": options.rounds,
        **before,
        "variants": {name: {"seconds": round(median(s), 4), **ratio(s, reference)} for name, s in seconds.items()},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
