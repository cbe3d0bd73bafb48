"""A step waits for no device: nothing in it asks for a value that the device still has to compute.

Without a GPU the operations themselves are watched: those that a GPU could not answer without being waited for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from offramp import data, objectives
from offramp.config import Spec, TrainConfig
from offramp.files import RunFolder
from offramp.network import EarlyExitNet
from offramp.rules import Workbench, build
from offramp.training.form import Compiled
from offramp.training.job import Job
from offramp.training.loop import Loop
from offramp.training.monitor import Placement

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount", "repeat_interleave")
READING = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)


class Waited(AssertionError):  # noqa: N818
    """Something would wait."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [x for x in args[1] or () if x is not None and x.dtype == torch.bool] if "index" in name else []
        if name in ASKING or masks:
            raise Waited(name)
        return func(*args, **(kwargs or {}))


class _Reading(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in READING:
            raise Waited(func.__name__)
        return func(*args, **(kwargs or {}))


def loop_of(folder: Path, rule: str, objective: str, num_steps: int = 3) -> Loop:
    pixels = np.random.default_rng(0).integers(0, 256, (16 * num_steps, 1, 8, 8)).astype(np.uint8)
    train = data.arrays(pixels, np.arange(len(pixels)) % 2, holdout=0, batch_size=16, flip=True, padding=1).train
    loss = objectives.build(Spec.parse(objective.split()))
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 4, 3)]
    damping = loss.damping_neuron == "required"
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(width, 2 + damping)) for width in (36, 4)]
    network = EarlyExitNet(stages, heads, damping=damping)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    bench = Workbench(network=network, forward=network, objective=loss, optimizer=optimizer)
    method = build(Spec.parse(rule.split()))
    method.prepare(bench)
    place = Placement(torch.device("cpu"), channels_last=False)
    job = Job(network, loss, train, data.HeldOut(), TrainConfig(epochs=1), method)
    return Loop(RunFolder(folder), job, bench, place)


def step(loop: Loop, start: int) -> None:
    """From the batch on, as within an epoch."""
    batch = next(loop.train.batches(start=start))
    images_BCHW, targets_B = loop.place(batch.images_BCHW, batch.targets_B)
    loop._one_step(batch._replace(images_BCHW=images_BCHW, targets_B=targets_B), start)


RULES = ["standard", "dfs", "dfs head=rest dropout=0.5", "gradient-equilibrium", "cgt", "cgt gate=hard"]
OBJECTIVES = [
    "cross-entropy",
    "label-smoothing",
    "discard-threshold",
    "damping",
    "power-sqrt",
    "dynamic",
    "dynamic over=batch normalisation=min-max with_gradient=true",
    "dynamic applied_to=root normalisation=tanh",
]


@pytest.mark.parametrize(
    ("rule", "objective"),
    [(rule, "dynamic") for rule in RULES] + [("standard", objective) for objective in OBJECTIVES],
)
def test_a_step_waits_for_no_device(tmp_path: Path, rule: str, objective: str) -> None:
    loop = loop_of(tmp_path, rule, objective)
    step(loop, 0)  # what is built once may wait
    with _Operations(), _Reading():
        step(loop, 1)
        step(loop, 2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: int(x.argmax()),
    ],
)
def test_whatever_waits_is_noticed(ask: Any) -> None:
    with pytest.raises(Waited), _Operations(), _Reading():
        ask(torch.randn(5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("form", ["plain", "compiled"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_on_a_gpu_waits_for_nothing(tmp_path: Path, rule: str, form: str) -> None:
    loop = loop_of(tmp_path, rule, "dynamic", num_steps=5)
    device = torch.device("cuda")
    loop.bench.network.to(device)
    if form == "compiled":
        loop.bench.forward = Compiled(loop.bench.network, loop.train.batch_size, pytest.fail)
    loop.bench.broken = loop.bench.broken.to(device)
    loop.place, loop.train = Placement(device, channels_last=True), loop.train.on(device)
    for number in range(3):  # the first compiles
        step(loop, number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loop, 3)
        step(loop, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
