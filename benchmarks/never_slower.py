"""Is a tuned engine ever slower than the network run straight to its last exit?

    python benchmarks/never_slower.py [--rounds 25] [--seconds 10] [--networks NAME ...] [--out FILE] [--small]

Each network at each share of images that leave at the first exit is tuned on one set of random images; on another the
engine and the straight way, in its own best chunks, take turns at each size of batch, those tuned for and one that was
not, and on a stream of small batches, which are given to the straight way one by one. A cell fails if its one-sided
interval of the paired ratio lies wholly above what is allowed: 1.02 or, where that is more, 3 microseconds a call, for
an engine checks what it is given. Of all cells together one fails by chance in 5 % of runs at most.
Prints a table (median ratios; `straight` where exits were found not to pay) and writes JSON. Exit status 1: a cell
failed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import torch
from torch import Tensor, nn

from offramp import EarlyExitNet
from offramp.backbones import msdnet, ranet
from offramp.policy import EVERYBODY, SOFTMAX, Policy
from offramp.runtime import Answers, Engine
from offramp.runtime.plan import STREAM
from offramp.runtime.timing import conditions, ratio, take_turns
from offramp.runtime.tune import STREAM_BATCH

ALLOWED, CHECKING = 1.02, 3e-6  # of the time straight on, or seconds a call
WRONG = 0.05  # of all cells together
SHARES = (0.0, 0.1, 0.4, 0.8)  # of images that leave at the first exit; at later ones half as many of those left
BATCHES = (1, 8, 32, 128)
BETWEEN = 20  # a size of batch that is not tuned for
TUNED_ON, TIMED = 256, 512  # images
ROUND = 0.05  # seconds that each takes in a round, about


def tiny() -> EarlyExitNet:
    """Heads cost as much as stages do: exits can hardly pay."""

    def unit(before: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, 8, 3, stride, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def head(side: int) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(8 * side**2, 64), nn.ReLU(), nn.Linear(64, 10))

    return EarlyExitNet([unit(1, 2), unit(8, 2), unit(8, 2)], [head(14), head(7), head(4)], image_shape=(1, 28, 28))


NETWORKS: dict[str, Callable[[], EarlyExitNet]] = {
    "tiny": tiny,
    "msdnet-3": lambda: msdnet(exits=3, num_classes=10, image_size=28, in_channels=1),
    "msdnet-5": lambda: msdnet(exits=5, num_classes=100, image_size=32),
    "ranet": lambda: ranet(num_classes=10, image_size=32),
}


def images(network: EarlyExitNet, number: int, seed: int) -> Tensor:
    assert network.image_shape is not None
    return torch.randn(number, *network.image_shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def built(name: str) -> EarlyExitNet:
    """With running statistics of random images; without, confidences of a deep network are all alike."""
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    for batch in torch.split(images(network, 512, 0), 32):
        network(batch)
    return network.eval()


@torch.inference_mode()
def policy(network: EarlyExitNet, share: float) -> Policy:
    """Thresholds by quantiles, on images of their own; for a share of 0 exits are asked and nobody is sure enough."""
    logits_KSC = torch.cat([network(batch) for batch in torch.split(images(network, TUNED_ON, 1), 64)], 1)
    confidence_KS, _ = SOFTMAX.over(logits_KSC, network.num_classes)
    there_S, thresholds = torch.ones(TUNED_ON, dtype=torch.bool), []
    for k, confidence_S in enumerate(confidence_KS[:-1]):
        leave = share / 2 if k else share
        thresholds.append(confidence_S[there_S].quantile(1 - leave).item() if share else 2.0)
        there_S &= confidence_S < thresholds[-1]
    return Policy((*thresholds, EVERYBODY))


def turn(
    call: Callable[[Any], object], offers: Sequence[Any], number: int, wait: Callable[[], None]
) -> Callable[[], float]:
    """A round: so many offers, other ones each time; gives the mean seconds of one."""
    position = 0

    def step() -> float:
        nonlocal position
        start = time.perf_counter()
        for i in range(position, position + number):
            call(offers[i % len(offers)])
        wait()
        position += number
        return (time.perf_counter() - start) / number

    return step


def compared(
    engine: Callable[[Any], object],
    straight: Callable[[Any], object],
    offers: Sequence[Any],
    wait: Callable[[], None],
    rounds: int,
    level: float,
) -> dict[str, float]:
    """The paired ratio of both, in turns on the same offers, and how large it may be."""
    calls = {"engine": engine, "straight": straight}
    seconds_of_all = [turn(call, offers, len(offers), wait)() for call in calls.values()]  # all are met
    number = max(1, int(ROUND / seconds_of_all[-1]))
    took = take_turns({name: turn(call, offers, number, wait) for name, call in calls.items()}, rounds, warmup=1)
    seconds = median(took["straight"])
    return {
        "straight_ms": 1000 * seconds,
        "allowed": max(ALLOWED, 1 + CHECKING / seconds),
        **ratio(took["engine"], took["straight"], level),
    }


def cells(
    network: EarlyExitNet, share: float, batch_sizes: Sequence[int], rounds: int, seconds: float, level: float
) -> Iterator[dict[str, Any]]:
    """Tune once, then time each size of batch, one between them, and a stream."""
    engine = Engine(network, policy(network, share))
    tuning = engine.tune(images(network, TUNED_ON, 2), batch_sizes=batch_sizes, seconds=seconds)
    timed = images(network, TIMED, 3)
    about = {"share": share, "left_first": (engine(timed).exits_B == 0).float().mean().item()}
    for size in sorted({*batch_sizes, BETWEEN}):
        batches = torch.split(timed[: len(timed) // size * size], size)
        straight, gain = engine.straight(size), tuning.gains.get(str(size))
        yield {
            "batch": size,
            **about,
            "straight": engine.runs(size) is straight,
            "gain": gain and gain.measured,
            **compared(engine, straight, batches, engine.wait, rounds, level),
        }
    straight = engine.straight(STREAM_BATCH)
    yield {
        "batch": STREAM,
        **about,
        "straight": engine.stream_plan.straight,
        "gain": tuning.gains[STREAM].measured,
        **compared(
            lambda batches: list(engine.stream(batches)),
            lambda batches: [Answers(*(column_B.cpu() for column_B in straight(batch))) for batch in batches],
            [torch.split(timed, STREAM_BATCH)],
            engine.wait,
            rounds,
            level,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="turns of each, per cell")
    parser.add_argument("--seconds", type=float, default=10, help="for tuning, per network and share")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--small", action="store_true", help="two networks, two shares, two sizes tuned for")
    parser.add_argument("--out", type=Path, help="where JSON goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ["tiny", "msdnet-3"] if options.small else options.networks
    shares = (0.0, 0.4) if options.small else SHARES
    sizes = (1, 32) if options.small else BATCHES
    level = WRONG / (len(names) * len(shares) * (len({*sizes, BETWEEN}) + 1))
    report: dict[str, Any] = {"what": "tuned engine / straight to the last exit", "level": level}
    report |= {**conditions(), "rounds": options.rounds, "cells": []}
    for name in names:
        network = built(name)
        for share in shares:
            line = f"{name:10} {share:4.0%}"
            for cell in cells(network, share, sizes, options.rounds, options.seconds, level):
                report["cells"].append({"network": name, **cell})
                note = " straight" if cell["straight"] else f"  <{cell['at_most']:5.3f} "
                line += f" | {cell['batch']:>3}: {cell['ratio']:5.3f}{note}"
            print(line, flush=True)
    slower = [cell for cell in report["cells"] if cell["at_least"] > cell["allowed"]]
    report["slower"] = len(slower)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    for cell in slower:
        print(f"Slower: {cell}")
    where = f"{report['device']}, threads: {options.threads}"
    allowed = f"{ALLOWED}, or {1e6 * CHECKING:.0f} microseconds a call"
    print(f"{len(report['cells'])} cells, {len(slower)} slower than allowed ({allowed}); {where}.")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
