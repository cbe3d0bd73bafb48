"""What dynamic power-sqrt costs over cross-entropy, forward and backward to the logits.

    python benchmarks/objective.py [--rounds 15] [--threads 1] [--quick] [--out FILE]

Batches of 64; MSDNet-7 for CIFAR-100, and the small network that `auto` builds for Fashion-MNIST. After each training
step, which leaves nothing of the logits in the processor's caches, either objective is called once on random logits of
the network's size; the difference is compared with that step. (In the times of whole steps, which vary by several
milliseconds, a third of one cannot be seen.) Beside it warm times: many calls in a row, objectives taking turns.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from steps import bare_rule

from offramp import backbones, objectives
from offramp.config import Spec
from offramp.data import Batch
from offramp.engine.timing import conditions, ratio, take_turns
from offramp.objectives import Objective

BATCH, CALLS = 64, 50
NETWORKS = {"msdnet7-cifar100": (100, (3, 32, 32)), "auto": (10, (1, 28, 28))}
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
            (objective.terms(leaf_KBC, targets_B).loss_KB.sum() / BATCH).backward()
        return (time.perf_counter() - start) / number

    return turn


def on(name: str, rounds: int) -> tuple[rows.Row, dict[str, Any]]:
    """The row of a network, and the figures behind it."""
    num_classes, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = backbones.build(Spec(name), num_classes=num_classes, image_shape=shape, damping=False)
    rule = bare_rule(network, OBJECTIVES[FIRST])
    batch = Batch(torch.randn(BATCH, *shape), torch.randint(num_classes, (BATCH,)), torch.arange(BATCH), BATCH)
    steps: dict[str, list[float]] = {FIRST: [], LAST: []}

    def after_step(objective: str) -> Callable[[], float]:
        call = calls(OBJECTIVES[objective], network.num_exits, num_classes, 1)

        def turn() -> float:
            start = time.perf_counter()
            rule.step(batch, 0.0)
            steps[objective].append(time.perf_counter() - start)
            return call()

        return turn

    cold = take_turns({objective: after_step(objective) for objective in steps}, rounds, warmup=1)
    step = [(a + b) / 2 for a, b in zip(steps[FIRST][1:], steps[LAST][1:], strict=True)]  # without the warmup
    warm = take_turns(
        {name: calls(one, network.num_exits, num_classes, CALLS) for name, one in OBJECTIVES.items()}, 2 * rounds + 1
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
    found = {name: on(name, rounds * times) for name, times in ROUNDS.items()}
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
