"""A finished run made by hand: a tiny network, trained for a second, on tiny images of which half are held out."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offramp import data
from offramp.network import EarlyExitNet, builder
from offramp.storage import save_tensors


@contextlib.contextmanager
def _signalled(number: int, condition: Callable[[], object]) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            if condition():
                os.kill(os.getpid(), number)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@pytest.fixture
def signalled() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with signalled(number, condition):` sends this process a signal as soon as the condition holds."""
    return _signalled


@builder
def tiny_network() -> EarlyExitNet:
    stages = [nn.Conv2d(channels, 2, 3, padding=1) for channels in (1, 2, 2)]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(32, 3)) for _ in stages]
    return EarlyExitNet(stages, exits, num_classes=3, image_shape=(1, 4, 4))


def tiny_data(holdout: int = 300) -> data.Parts:
    """The class is the brightest row, more or less."""
    numbers = np.random.default_rng(0)
    labels = np.arange(900) % 3
    images = numbers.integers(0, 90, (900, 4, 4), dtype=np.uint8)
    images[np.arange(900), labels] += 40
    return data.arrays(images, labels, batch_size=64, holdout=holdout)


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = tiny_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for epoch in range(5):
        for batch in tiny_data().train.batches(epoch=epoch):
            logits_KBC = network(batch.images_BCHW)
            loss = sum(nn.functional.cross_entropy(logits_BC, batch.targets_B) for logits_BC in logits_KBC)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.state_dict()


@pytest.fixture
def tiny(weights: dict[str, Tensor]) -> EarlyExitNet:
    """The run's network."""
    network = tiny_network()
    network.load_state_dict(weights)
    return network.eval()


@pytest.fixture
def parts() -> data.Parts:
    """The run's data."""
    return tiny_data()


@pytest.fixture
def make_trained(weights: dict[str, Tensor], tmp_path: Path) -> Callable[..., str]:
    """`make_trained(holdout=300, ...)` gives the folder `run`; what is given changes entries of its config.json."""

    def make(holdout: int = 300, **more: Any) -> str:
        config = {
            "format": 1,
            "data": {"source": {"name": f"{__name__}:tiny_data", "args": {"holdout": holdout}}},
            "network": tiny_network().spec.to_json(),
            "objective": {"name": "offramp.objectives.cross_entropy:CrossEntropy", "args": {}},
            "training": {"epochs": 1, "seed": 0},
            **more,
        }
        save_tensors(tmp_path / "run" / "weights.safetensors", weights)
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        return str(tmp_path / "run")

    return make
