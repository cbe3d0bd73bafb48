"""How long runs will take: an estimate, from operations and one rate, before anything is trained."""

import functools
import json
import math
import time

import torch
from torch.nn import functional as F  # noqa: N812

from offramp import backbones
from offramp.config import Spec
from offramp.costs import Cost, cost
from offramp.devices import device_named
from offramp.paper.experiments import Row
from offramp.paper.scales import Setting
from offramp.paper.watching import plain

MEASURED_SECONDS = 1.0
PIXELS = 16 * 32 * 32  # of all images of a step that is timed: few, so that it also ends soon for ImageNet


def operations(row: Row) -> float:
    """Operations of a run's forward passes, times the work of its method; backward passes are in the rate.

    An image that is only watched after an epoch is a third of one that is trained on.
    """
    images = row.work * trained_images(row) + watched_images(row) / 3
    return row.run.training.epochs * images * _an_image(row)


def trained_images(row: Row) -> int:
    """Images that one epoch trains on."""
    own_limit = "limit" in row.run.data.source.args  # the held-out images come on top of it
    return row.setting.images - (0 if own_limit else row.run.data.holdout or 0)


def watched_images(row: Row) -> int:
    """Images that are watched after an epoch: half of those held out, or the test set where a row asks for that."""
    if plain(row.run.data) != row.run.data:
        return row.setting.test_images
    return (row.run.data.holdout or 0) // 2


def measured_rate(setting: Setting, threads: int | None = None) -> float:
    """Operations a second of training steps on this machine, measured for about a second on a setting's network.

    Other networks, batches and runs side by side have other rates: it is good for a factor of two or three.
    """
    before, batch = torch.get_num_threads(), max(2, PIXELS // math.prod(setting.image_shape[1:]))
    device = device_named("auto")
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        network = backbones.build(setting.network, num_classes=setting.num_classes, image_shape=setting.image_shape)
        network.to(device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
        images_BCHW = torch.randn(batch, *setting.image_shape, device=device)
        targets_B = torch.zeros(batch, dtype=torch.long, device=device)
        seconds: list[float] = []
        while len(seconds) < 3 or sum(seconds) < MEASURED_SECONDS:
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = torch.stack([F.cross_entropy(logits_BC, targets_B) for logits_BC in network(images_BCHW)]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # wait for the device
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    # The quickest: the first steps build their kernels, and on a busy machine most wait (their median: half the rate).
    return batch * cost(network, setting.image_shape).exits[-1].operations / min(seconds)


def _an_image(row: Row) -> int:
    return counted(row).exits[-1].operations


def counted(row: Row) -> Cost:
    """What a row's network costs, without the damping neuron."""
    setting, network = row.setting, json.dumps(row.network.to_json(), sort_keys=True)
    return _counted(network, setting.num_classes, setting.image_shape)


@functools.cache
def _counted(network: str, num_classes: int, shape: tuple[int, int, int]) -> Cost:
    spec = Spec.from_json(json.loads(network))
    return cost(backbones.build(spec, num_classes=num_classes, image_shape=shape), shape)
