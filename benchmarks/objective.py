"""What dynamic power-sqrt costs over cross-entropy, forward and backward to the logits.

    python benchmarks/objective.py [--rounds 15] [--threads 1] [--quick] [--out FILE]

Batches of 64; MSDNet-7 for CIFAR-100, and the small network that `auto` builds for Fashion-MNIST. After each step of
`offramp.fit`, which leaves nothing of the logits in the processor's caches, either objective is called once on random
logits of the network's size; the difference is compared with these steps. (In the times of whole steps, which vary by
several milliseconds, a third of one cannot be seen.) Beside it warm times: many calls in a row, objectives in turns.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch

import offramp
from data import BATCH, NETWORKS, random_images
from offramp import backbones, objectives
from offramp.config import Spec, TrainConfig
from offramp.data import Batch
from offramp.objectives import Objective
from offramp.rules import Outcome, TrainingRule
from offramp.runtime.timing import conditions, ratio, take_turns

CALLS = 50
OBJECTIVES: dict[str, Objective] = {  # the first is what the others are compared with
    "cross-entropy": objectives.CrossEntropy(),
    "damping": objectives.Damping(),
    "power-sqrt": objectives.PowerSqrt(),
    "dynamic power-sqrt": objectives.dynamic(),
}
FIRST, LAST = "cross-entropy", "dynamic power-sqrt"
SHARE = 0.01
ROUNDS = {"msdnet7-cifar100": 1, "auto": 4}  # a step of the small one takes an eighth


def calls(objective: Objective, num_exits: int, num_classes: int, number: int) -> Callable[[], float]:
    """A function that calls forward and backward so many times and returns the seconds of one."""
    random = torch.Generator().manual_seed(0)
    neuron = objective.damping_neuron == "required"
    logits_KBC = torch.randn(num_exits, BATCH, num_classes + neuron, generator=random)
    targets_B = torch.randint(num_classes, (BATCH,), generator=random)

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(number):
            leaf_KBC = logits_KBC.detach().requires_grad_()
            (objective.terms(leaf_KBC, targets_B).loss_KB.sum() / BATCH).backward()  # type: ignore[no-untyped-call]
        return (time.perf_counter() - start) / number

    return turn


class Calling(TrainingRule):
    """The standard rule; calls one of the objectives after each step, in turns."""

    def __init__(self, calls: Mapping[str, Callable[[], float]]) -> None:
        self.calls = calls
        self.steps: list[float] = []
        self.after: dict[str, list[float]] = {name: [] for name in calls}

    def step(self, batch: Batch, progress: float) -> Outcome:
        start = time.perf_counter()
        outcome = self.bench.descend(batch, progress)
        self.steps.append(time.perf_counter() - start)
        name = list(self.calls)[(len(self.steps) - 1) % len(self.calls)]
        self.after[name].append(self.calls[name]())
        return outcome


def on(name: str, rounds: int, threads: int) -> tuple[rows.Row, dict[str, Any]]:
    """The row of a network, and the figures behind it."""
    num_classes, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = backbones.build(Spec(name), num_classes=num_classes, image_shape=shape, damping=False)
    num_exits = network.num_exits
    rule = Calling({one: calls(OBJECTIVES[one], num_exits, num_classes, 1) for one in (FIRST, LAST)})
    train = random_images(2 * BATCH * (rounds + 1), shape, num_classes).train
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(epochs=1, lr=0.01, threads=threads, device="cpu")
        offramp.fit(network, OBJECTIVES[FIRST], train, None, config, out=folder, rule=rule)
    cold = {one: times[1:] for one, times in rule.after.items()}  # the first does not count
    step = [(a + b) / 2 for a, b in zip(rule.steps[2::2], rule.steps[3::2], strict=True)]
    warm = take_turns(
        {one: calls(objective, num_exits, num_classes, CALLS) for one, objective in OBJECTIVES.items()}, 2 * rounds + 1
    )
    more = [a - b for a, b in zip(cold[LAST], cold[FIRST], strict=True)]
    shares = [a / b for a, b in zip(more, step, strict=True)]
    row = rows.value(f"{LAST} less {FIRST}, share of a step of {name}", "", shares, f"under {SHARE:g}", below=SHARE)
    more_ms = rows.spread([1000 * s for s in more])
    figures = {
        "after_a_step_ms": {objective: rows.spread([1000 * s for s in times]) for objective, times in cold.items()},
        "difference_ms": more_ms,
        "step_ms": rows.spread([1000 * s for s in step]),
        "holds_for_steps_from_ms": round(more_ms["at_most"] / SHARE, 1),
        "warm": {
            objective: {"ms": round(1000 * median(times), 4), **ratio(times, warm[FIRST])}
            for objective, times in warm.items()
        },
    }
    return row, figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds = 5 if options.quick else options.rounds
    found = {name: on(name, rounds * times, options.threads) for name, times in ROUNDS.items()}
    return {
        "what": "objectives, forward and backward to the logits, batch 64",
        **before,
        "rounds": rounds,
        "rows": [row for row, _ in found.values()],
        "networks": {name: figures for name, (_, figures) in found.items()},
    }


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=15, threads=1)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
