"""A short run on a frozen trunk with batch norm: `python frozen_run.py OUT KEEP_FEATURES`.

Started plainly it is one process; under torchrun the processes share each batch.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

import offramp
from offramp import data
from offramp.config import TrainConfig
from offramp.network import EarlyExitNet
from offramp.objectives import PowerSqrt


def network() -> EarlyExitNet:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4), nn.Tanh()) for c in (1, 4)]
    for stage in stages:
        nn.init.uniform_(stage[1].running_mean)  # no number that is the same after halving and doubling
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)) for _ in stages]
    return EarlyExitNet(stages, heads, damping=True)


def main(out: str, keep: Any) -> None:
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).integers(0, 255, (60, 1, 8, 8)).astype(np.uint8)
    parts = data.arrays(pixels, labels, batch_size=7, holdout=10)  # the last batch has three images
    config = TrainConfig(epochs=2, lr=0.05, freeze_trunk=True, keep_features=keep)
    offramp.fit(network(), PowerSqrt(0.3), parts.train, parts.val, config, out=out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
