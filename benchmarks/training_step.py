"""What a training step costs in each form, over the textbook's network module by module.

    python benchmarks/training_step.py [--rounds 15] [--threads 2] [--quick] [--out FILE]

Random images; forward, sum of cross-entropies, backward, SGD. MSDNet-7 for CIFAR-100 and RANet-6 in batches of 64,
MSDNet-5 for ImageNet in batches of 8. Ours is trained as `offramp.fit` does, by rule and workbench. A product of
matrices of 2,048 x 2,048 takes turns with the steps: the machine's peak in the same minutes. All exist at once, so the
larger ones need some gigabytes.

A turn is two steps, and the second is timed: in training a step follows one of its own kind. The first after another's
finds nothing of its own in the caches and its memory given back; at batch 4 it takes twice as long.
"""

import argparse
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from textbook import PlainMSDNet, PlainRANet, train_step
from torch import nn

from offramp import backbones
from offramp.backbones.presets import PRESETS
from offramp.config import Spec
from offramp.costs import cost
from offramp.data import Batch
from offramp.engine.timing import conditions, take_turns
from offramp.fast import training_form
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.rules import Standard, Workbench

SIDE = 2048


class Case(NamedTuple):
    """A network of a preset and of the textbook, and what is wanted of ours: times as fast as plain in float32."""

    preset: str
    textbook: Callable[..., nn.Module]
    batch: int
    goals: dict[tuple[str, str], float]


CASES = {
    "MSDNet-7": Case(
        "msdnet7-cifar100",
        PlainMSDNet,
        64,
        {("auto", "float32"): 1.15, ("auto", "bf16"): 1.6, ("kernels", "float32"): 1.15, ("kernels", "bf16"): 2.2},
    ),
    "RANet-6": Case("ranet6-cifar100", PlainRANet, 64, {("auto", "bf16"): 1.4, ("kernels", "bf16"): 1.4}),
    "MSDNet-5 at 224": Case("msdnet5-imagenet", PlainMSDNet, 8, {("auto", "bf16"): 1.4, ("kernels", "bf16"): 1.4}),
}
PLAIN = ("plain", "float32")


def our_step(network: EarlyExitNet, form: str, precision: str, batch: Batch) -> Callable[[], float]:
    """A function that trains for one step, as `offramp.fit` does, and returns its seconds."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    forward = training_form(network, form, torch.device("cpu"))
    rule.prepare(Workbench(network, forward, CrossEntropy(), optimizer, precision))

    def step() -> float:
        start = time.perf_counter()
        rule.step(batch, progress=0.0)
        return time.perf_counter() - start

    return step


def plain_step(network: nn.Module, precision: str, batch: Batch) -> Callable[[], float]:
    """The same for the textbook's network."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> float:
        start = time.perf_counter()
        train_step(network, optimizer, batch.images_BCHW, batch.targets_B, precision)
        return time.perf_counter() - start

    return step


def second(step: Callable[[], float]) -> float:
    """Seconds of a step that follows one of its kind."""
    step()
    return step()


def product(dtype: torch.dtype) -> Callable[[], float]:
    """A product of matrices."""
    left, right = torch.randn(2, SIDE, SIDE).to(dtype)

    def multiply() -> float:
        start = time.perf_counter()
        left @ right
        return time.perf_counter() - start

    return multiply


def measured(name: str, case: Case, rounds: int) -> tuple[list[rows.Row], dict[str, Any]]:
    """Rows of one network, and the shares of the machine's peak."""
    torch.manual_seed(0)
    network = backbones.build(Spec(case.preset))
    knobs = PRESETS[case.preset].args
    shape = (case.batch, *network.image_shape)
    targets_B = torch.randint(network.num_classes, (case.batch,))
    batch = Batch(torch.randn(shape), targets_B, torch.arange(case.batch), case.batch)
    plain = {("plain", p): plain_step(case.textbook(**knobs), p, batch) for p in ("float32", "bf16")}
    ours = {(form, p): our_step(backbones.build(Spec(case.preset)), form, p, batch) for form, p in case.goals}
    peaks = {("peak", "float32"): product(torch.float32), ("peak", "bf16"): product(torch.bfloat16)}
    variants = {**plain, **ours, **peaks}
    seconds = take_turns({key: functools.partial(second, step) for key, step in variants.items()}, rounds)
    operations = (
        6 * cost(network).exits[-1].multiply_adds * case.batch
    )  # forward, and two products of that size backward
    found, shares = [], {}
    for key, times in seconds.items():
        form, precision = key
        if form == "peak":
            continue
        peak = 2 * SIDE**3 / median(seconds["peak", precision])
        label = f"{name}, {form}, {precision}"
        shares[label] = {
            "seconds": rows.spread(times),
            "images a second": round(case.batch / median(times), 1),
            "share of peak": round(operations / median(times) / peak, 3),
        }
        if key != PLAIN:
            goal = case.goals.get(key)
            words = "none" if goal is None else f"at least {goal} times as fast as plain float32"
            found.append(rows.paired(label, "times as fast", seconds[PLAIN], times, words, at_least=goal))
    peak_rates = {p: round(2 * SIDE**3 / median(seconds["peak", p]) / 1e9, 1) for p in ("float32", "bf16")}
    return found, {"peak, billion operations a second": peak_rates, **shares}


def parser() -> argparse.ArgumentParser:
    """The options."""
    return rows.parser(__doc__, rounds=15, threads=2)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    found: list[rows.Row] = []
    details: dict[str, Any] = {}
    for name, case in CASES.items():
        rounds = min(options.rounds, 7) if options.quick else options.rounds
        own, details[name] = measured(name, case, rounds)
        found += own
    return {"what": "training step", **before, "rounds": options.rounds, "rows": found, "details": details}


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
