"""What a compiled training step costs, over the textbook's network module by module.

    python benchmarks/training_step.py [--rounds 15] [--threads 2] [--networks NAME ...] [--profile] [--quick] [--out F]

Random images; forward, sum of cross-entropies, backward, SGD. MSDNet-7 for CIFAR-100 and RANet-6 in batches of 64,
MSDNet-5 for ImageNet in batches of 8. Ours is trained as `offramp.fit` does, by rule and workbench, from the weights
of the textbook's; all are to have the same loss before anything is timed. All exist at once, so the larger ones need
some gigabytes.

A turn is two steps, and the second is timed: in training a step follows one of its own kind. The first after another's
finds nothing of its own in the caches and its memory given back; at batch 4 it takes twice as long.

The peak is the fastest of all products of two matrices of 2,048 x 2,048 that took turns with the steps, by `torch.mm`
into memory that was there: in each turn one to warm up and two that count. A step's operations are three times those of
its forward pass: each product has two of its size backward.

`--profile`: where the time of a plain bf16 step goes, by kind of operator, under torch's profiler, which makes Python
slower. Compiling takes minutes for each network and precision, less where torch has kept kernels of before; with
--quick MSDNet-7 is compiled in bf16 alone, nothing else takes part, and there is no profile.
"""

import argparse
import copy
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from profiling import profiled, shares
from textbook import PlainMSDNet, PlainRANet, copy_weights, train_step
from torch import Tensor, nn

from offramp import backbones
from offramp.backbones.presets import PRESETS
from offramp.config import Spec
from offramp.costs import cost
from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.rules import Standard, Workbench
from offramp.runtime.timing import conditions, take_turns
from offramp.training.form import Compiled

Precision = Literal["float32", "bf16"]
SIDE = 2048


class Case(NamedTuple):
    """A network of a preset and of the textbook, and how fast ours is to be, over plain float32."""

    preset: str
    textbook: Callable[..., nn.Module]
    batch: int
    goals: dict[str, float | None]  # by precision


CASES = {
    "MSDNet-7": Case("msdnet7-cifar100", PlainMSDNet, 64, {"float32": 1.15, "bf16": 2.5}),
    "RANet-6": Case("ranet6-cifar100", PlainRANet, 64, {"float32": None, "bf16": 1.4}),
    "MSDNet-5 at 224": Case("msdnet5-imagenet", PlainMSDNet, 8, {"float32": None, "bf16": 1.4}),
}
QUICK: dict[str, tuple[Precision, ...]] = {"MSDNet-7": ("bf16",)}
PLAIN, COMPILED = ("plain", "float32"), "compiled"
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
LOSS = {"float32": 1e-5, "bf16": 2e-3}  # how far from plain's in float32 the first loss may be, as a share of it
PRODUCTS, PROFILED = 2, 5

Step = Callable[[], Tensor]  # gives the loss


def our_step(network: EarlyExitNet, precision: Precision, batch: Batch) -> Step:
    """A function that trains for one step, compiled, as `offramp.fit` does."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    forward = Compiled(network, batch.size, print)
    rule.prepare(Workbench(network, forward, CrossEntropy(), optimizer, precision))
    return lambda: rule.step(batch, progress=0.0).loss


def plain_step(network: nn.Module, precision: str, batch: Batch) -> Step:
    """The same for the textbook's network."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    return lambda: train_step(network, optimizer, batch.images_BCHW, batch.targets_B, precision)


def steps_of(case: Case, precisions: Sequence[Precision] = ("float32", "bf16")) -> dict[tuple[str, str], Step]:
    """Of the textbook's network, in float32 at least, and of ours, compiled; same weights, same batch."""
    torch.manual_seed(0)
    network = backbones.build(Spec(case.preset))
    assert network.image_shape is not None
    plain = case.textbook(**PRESETS[case.preset].args)
    copy_weights(network, plain)
    targets_B = torch.randint(network.num_classes, (case.batch,))
    batch = Batch(torch.randn(case.batch, *network.image_shape), targets_B, torch.arange(case.batch), case.batch)
    steps: dict[tuple[str, str], Step]
    plains = dict.fromkeys((PLAIN[1], *precisions))
    steps = {("plain", p): plain_step(copy.deepcopy(plain), p, batch) for p in plains}
    return steps | {(COMPILED, p): our_step(copy.deepcopy(network), p, batch) for p in precisions}


def check(name: str, steps: Mapping[tuple[str, str], Step]) -> dict[str, float]:
    """The losses of the first step, each over plain's in float32; who has another loss is not timed."""
    losses = {key: float(step()) for key, step in steps.items()}
    off = {key: loss / losses[PLAIN] - 1 for key, loss in losses.items()}
    for (form, precision), error in off.items():
        if not abs(error) <= LOSS[precision]:
            raise SystemExit(
                f"{name}, {form}, {precision}: its loss is off by {error:.2g}, allowed {LOSS[precision]:g}."
            )
    return {", ".join(key): float(f"{error:.2g}") for key, error in off.items()}


def second(step: Step) -> float:
    """Seconds of a step that follows one of its kind."""
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def product(dtype: torch.dtype) -> Callable[[], float]:
    """The seconds of a product of matrices, into memory that is there: the best of some after one that warms up."""
    left, right, out = torch.randn(3, SIDE, SIDE).to(dtype)

    def multiply() -> float:
        seconds = []
        for _ in range(1 + PRODUCTS):
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    return multiply


def peak(seconds: Sequence[float]) -> float:
    """Operations a second of the fastest of all products that were timed."""
    return 2 * SIDE**3 / min(seconds)


def measured(
    name: str, case: Case, rounds: int, precisions: Sequence[Precision]
) -> tuple[list[rows.Row], dict[str, Any]]:
    """The rows of one network, and the figures behind them."""
    steps = steps_of(case, precisions)
    off = check(name, steps)
    turns: dict[tuple[str, str], Callable[[], float]]
    turns = {key: functools.partial(second, step) for key, step in steps.items()}
    turns |= {("peak", p): product(dtype) for p, dtype in DTYPES.items()}
    seconds = take_turns(turns, rounds, warmup=1)
    operations = 6 * cost(backbones.build(Spec(case.preset))).exits[-1].multiply_adds * case.batch  # see the top
    rates: dict[str, float] = {p: peak(seconds["peak", p]) for p in DTYPES}
    found, figures = [], {}
    for form, precision in steps:
        label, times = f"{name}, {form}, {precision}", seconds[form, precision]
        of_peak = round(operations / median(times) / rates[precision], 3)
        figures[label] = {
            "seconds": rows.spread(times),
            "images a second": round(case.batch / median(times), 1),
            "share of peak": of_peak,
        }
        if (form, precision) == PLAIN:
            row = rows.value(label, "s", times, "none")
        else:
            goal = case.goals[precision] if form == COMPILED else None
            words = "none" if goal is None else f"at least {goal} times as fast as plain float32"
            row = rows.paired(label, "times as fast", seconds[PLAIN], times, words, at_least=goal)
        found.append({**row, "of_peak": of_peak})
    peak_rates = {p: round(rate / 1e9, 1) for p, rate in rates.items()}
    return found, {"peak, billion operations a second": peak_rates, "first loss over plain's, less 1": off, **figures}


def profile_of(name: str, precision: Precision) -> dict[str, Any]:
    """Where a plain step's time goes, under torch's profiler, which does not see into what is compiled."""
    device = torch.device("cpu")
    step = steps_of(CASES[name], [precision])["plain", precision]
    for _ in range(3):
        step()
    seen = [shares(profiled(step, device), device) for _ in range(PROFILED)]
    by_kind = {kind: [one[kind] for one in seen] for kind in seen[0]}
    lines = [f"| of a plain step of {name}, {precision} | share | bounds |", "|---|---|---|"]
    for kind, values in by_kind.items():
        low, high = rows.bounds(values).values()
        lines.append(f"| {kind} | {100 * median(values):.1f} % | {100 * low:.1f} to {100 * high:.1f} % |")
    return {"profile": {kind: rows.spread(values) for kind, values in by_kind.items()}, "table": lines}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = rows.parser(__doc__, rounds=15, threads=2)
    made.add_argument("--profile", action="store_true", help="nothing but where the time of a bf16 step goes")
    made.add_argument("--networks", nargs="+", choices=CASES, default=[*CASES], metavar="NAME", help="these alone")
    return made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds = rows.ENOUGH if options.quick else options.rounds
    found: list[rows.Row] = []
    details: dict[str, Any] = {}
    chosen = QUICK if options.quick else {name: tuple(DTYPES) for name in options.networks}
    for name, precisions in () if options.profile else chosen.items():
        own, details[name] = measured(name, CASES[name], rounds, precisions)
        found += own
    looked = profile_of("MSDNet-7", "bf16") if options.profile or not options.quick else {}
    print("\n".join(looked.get("table", [])), file=sys.stderr)
    return {"what": "training step", **before, "rounds": rounds, "rows": found, "details": details, **looked}


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
