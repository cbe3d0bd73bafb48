"""Logits of every exit at once: how many times as fast as the textbook's network, module by module.

    python benchmarks/inference.py [--rounds 25] [--threads 2] [--quick] [--out FILE]

MSDNet-7 for CIFAR-100, and the `auto` network (a small MSDNet) for images of Fashion-MNIST's size, in batches of 1, 32
and 256 random images. Plain is float32, channels first; ours is `Program.logits`, folded and packed, in float32 and
bf16. Batches of 256 go in chunks of 32 or 64 or at once: each way first shows in which it is fastest, then all take
turns anew. A product of matrices takes turns with them: the machine's peak in the same minutes.

Before anything is timed the answers are compared with plain's in float64, exit by exit: the error's norm over that of
what differs from image to image. In bf16 it is to be that of plain autocast, up to chance.
"""

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from textbook import PlainMSDNet, copy_weights
from torch import Tensor, nn
from training_step import SIDE, product

from offramp import backbones
from offramp.config import Spec
from offramp.costs import cost
from offramp.engine import Form, Program
from offramp.engine.timing import conditions, take_turns
from offramp.network import EarlyExitNet

NETWORKS = {"MSDNet-7": ("msdnet7-cifar100", 100, (3, 32, 32)), "auto, 28 pixels": ("auto", 10, (1, 28, 28))}
BATCHES = (1, 32, 256)
CHUNKS = (32, 64, 256)
FORMS = {"float32": Form(packed=True), "bf16": Form(packed=True, bf16=True)}
GOALS = {"float32": 1.4, "bf16": 2.5}
ROUNDING, CHANCE = 1e-4, 1.5  # float32's error at most; bf16's over autocast's at most
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
IN_A_TURN = 16  # images at least

Call = Callable[[Tensor], Tensor]


def built(name: str) -> tuple[EarlyExitNet, nn.Module]:
    """Ours and the textbook's with the same weights, and running statistics of random images."""
    spec, num_classes, image_shape = NETWORKS[name]
    torch.manual_seed(0)
    ours = backbones.build(Spec(spec), num_classes=num_classes, image_shape=image_shape, damping=False).train()
    with torch.no_grad():
        for _ in range(8):
            ours(torch.randn(64, *image_shape))
    assert ours.spec is not None
    knobs = {key: value for key, value in ours.spec.args.items() if key not in ("bottleneck", "last_only")}
    plain = PlainMSDNet(**knobs).eval()
    copy_weights(ours.eval(), plain)
    return ours, plain


def errors(plain: nn.Module, calls: Mapping[str, Call], images_BCHW: Tensor) -> dict[str, list[float]]:
    """The error `[K]` of each way, over what differs from image to image; plain under autocast is one more."""
    exact_KBC = copy.deepcopy(plain).double()(images_BCHW.double())
    differs_K = (exact_KBC - exact_KBC.mean(1, keepdim=True)).square().mean((1, 2)).sqrt()
    found = {name: call(images_BCHW) for name, call in calls.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = plain(images_BCHW)
    return {
        name: ((logits_KBC.double() - exact_KBC).square().mean((1, 2)).sqrt() / differs_K).tolist()
        for name, logits_KBC in found.items()
    }


def check(name: str, found: Mapping[str, list[float]]) -> None:
    """Answers that are not plain's are not timed."""
    for precision in GOALS:
        allowed = [ROUNDING if precision == "float32" else CHANCE * error for error in found["autocast"]]
        if any(error > most for error, most in zip(found[precision], allowed, strict=True)):
            raise SystemExit(f"{name} in {precision}: errors {found[precision]} of the exits, allowed {allowed}.")


def turn(call: Call, images_BCHW: Tensor, chunk: int) -> Callable[[], float]:
    """A function that runs the batch in chunks, some times, and returns the seconds of one."""
    times = max(1, IN_A_TURN // len(images_BCHW))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            for chunk_BCHW in torch.split(images_BCHW, chunk):
                call(chunk_BCHW)
        return (time.perf_counter() - start) / times

    return run


def fastest(calls: Mapping[str, Call], images_BCHW: Tensor, rounds: int) -> dict[str, int]:
    """The chunk in which each way is fastest."""
    chunks = [chunk for chunk in CHUNKS if chunk <= len(images_BCHW)] or [len(images_BCHW)]
    if len(chunks) == 1:
        return dict.fromkeys(calls, chunks[0])
    ways = {f"{name} {chunk}": turn(call, images_BCHW, chunk) for name, call in calls.items() for chunk in chunks}
    took = take_turns(ways, rounds, warmup=1)
    return {name: min(chunks, key=lambda chunk: median(took[f"{name} {chunk}"])) for name in calls}


@torch.inference_mode()
def on(name: str, rounds: int, sorting: int) -> tuple[list[rows.Row], dict[str, Any]]:
    """The rows of a network, and the figures behind them."""
    ours, plain = built(name)
    assert ours.image_shape is not None
    calls: dict[str, Call] = {"plain": plain}
    calls |= {precision: Program(ours, form).logits for precision, form in FORMS.items()}
    found = errors(plain, calls, torch.randn(64, *ours.image_shape))
    check(name, found)
    peaks = {f"peak, {precision}": product(dtype) for precision, dtype in PRECISIONS.items()}
    results, details = [], {}
    for size in BATCHES:
        images_BCHW = torch.randn(size, *ours.image_shape)
        chunks = fastest(calls, images_BCHW, sorting)
        ways = {way: turn(call, images_BCHW, chunks[way]) for way, call in calls.items()}
        seconds = take_turns({**ways, **peaks}, rounds)
        for precision, least in GOALS.items():
            about = f"{name}, batch {size}, {precision}"
            goal = f"at least {least:g} times as fast as plain float32"
            row = rows.paired(about, "times as fast", seconds["plain"], seconds[precision], goal, at_least=least)
            results.append(row)
        for way in calls:
            times = seconds[way]
            peak = 2 * SIDE**3 / median(seconds["peak, bf16" if way == "bf16" else "peak, float32"])
            details[f"batch {size}, {way}"] = {
                "milliseconds": rows.spread([1000 * s for s in times]),
                "chunk": chunks[way],
                "images a second": round(size / median(times), 1),
                "share of peak": round(2 * cost(ours).exits[-1].multiply_adds * size / median(times) / peak, 3),
            }
    scale = {way: [float(f"{error:.2g}") for error in of_exits] for way, of_exits in found.items()}
    return results, {"errors of the exits": scale, **details}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds, sorting = (rows.ENOUGH, 1) if options.quick else (options.rounds, 5)
    found = {name: on(name, rounds, sorting) for name in NETWORKS}
    return {
        "what": "whole-network inference, every exit's logits, over the textbook's network",
        **before,
        "forms": {precision: str(form) for precision, form in FORMS.items()},
        "rounds": rounds,
        "rows": [row for own, _ in found.values() for row in own],
        "details": {name: figures for name, (_, figures) in found.items()},
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    return rows.parser(__doc__, rounds=25, threads=2)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
