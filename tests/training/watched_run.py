"""A short run that watches gradients, on a network without batch norm: `python watched_run.py OUT`.

Started plainly it is one process; under torchrun the processes share each batch.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import offramp
from offramp import data
from offramp.config import TrainConfig
from offramp.network import EarlyExitNet
from offramp.objectives import dynamic


def main(out: str) -> None:
    torch.manual_seed(0)
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).integers(0, 255, (60, 1, 8, 8)).astype(np.uint8)
    parts = data.arrays(pixels, labels, batch_size=7, holdout=10)  # the last batch has one image: an empty share
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Tanh()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh())]
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(width, 4)) for width in (36, 4)]
    network = EarlyExitNet(stages, heads, damping=True)
    config = TrainConfig(epochs=2, lr=0.05, xray=13)
    offramp.fit(network, dynamic(strength=0.3), parts.train, parts.val, config, out=out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
    # A group whose threads outlive it aborts Python's exit now and then. (Where there is no /proc nothing is seen.)
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), threads
