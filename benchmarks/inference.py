"""Logits of every exit at once: how many times as fast as the textbook's network, module by module.

    python benchmarks/inference.py [--rounds 25] [--threads 2] [--networks NAME ...] [--quick] [--out FILE]

MSDNet-7 for CIFAR-100, and the `auto` network (a small MSDNet) for images of Fashion-MNIST's size, in batches of 1, 32
and 256 random images. Plain is float32, channels first; ours is `Program.logits`, folded and packed, in float32 and
bf16, and, where it is installed, run by onnxruntime in float32. Single images also go through the same network packed
module by module, without plans. With --quick only what has a goal takes part. Larger batches go in chunks of 8 images
or more, or at once: each way first shows in which it is fastest, in three rounds or more, then all take turns anew.
Products of matrices take turns with them: the machine's peak in the same minutes, as in training_step.py.

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
from offramp.fast.packing import can_pack, pack
from offramp.runtime.sessions import program
from textbook import PlainMSDNet, copy_weights
from torch import Tensor, nn
from training_step import DTYPES, peak, product

from offramp import backbones
from offramp.config import Spec
from offramp.costs import cost
from offramp.fast.folding import fold
from offramp.network import EarlyExitNet
from offramp.runtime import Form, usual_forms
from offramp.runtime.timing import conditions, take_turns

NETWORKS = {"MSDNet-7": ("msdnet7-cifar100", 100, (3, 32, 32)), "auto, 28 pixels": ("auto", 10, (1, 28, 28))}
BATCHES = (1, 32, 256)
CHUNKS = (8, 16, 32, 64, 256)
FORMS = {"float32": Form(packed=True), "bf16": Form(packed=True, bf16=True)}
ONNX = Form(backend="onnxruntime")
BY_ONNX, UNPLANNED = "onnxruntime, float32", "packed, not planned"
GOALS = {"float32": 1.4, "bf16": 2.5}
ROUNDING, CHANCE = 1e-4, 1.5  # float32's error at most; bf16's over autocast's at most
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


def unplanned(network: EarlyExitNet, precision: str) -> Call:
    """The network packed module by module, as far as that can be seen without tracing it."""
    twin = copy.deepcopy(network).requires_grad_(False).to(memory_format=torch.channels_last)
    for part in (*twin.stages, *twin.exits):
        fold(part)
        pack(part.to(DTYPES[precision]))

    def logits(images_BCHW: Tensor) -> Tensor:
        given_KBC: Tensor = twin(images_BCHW.to(DTYPES[precision]).contiguous(memory_format=torch.channels_last))
        return given_KBC

    return logits


def ways(ours: EarlyExitNet, plain: nn.Module, with_goals_alone: bool = False) -> dict[str, Call]:
    """Everything that takes turns, by name; what is of bf16 ends on it."""
    cpu = torch.device("cpu")
    calls: dict[str, Call] = {"plain": plain}
    calls |= {precision: program(ours, form).logits for precision, form in FORMS.items()}
    if with_goals_alone:
        return calls
    if ONNX in usual_forms(cpu):
        calls[BY_ONNX] = program(ours, ONNX).logits
    return calls | {f"{UNPLANNED}, {p}": unplanned(ours, p) for p, dtype in DTYPES.items() if can_pack(cpu, dtype)}


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
    for way in found.keys() - {"autocast"}:
        allowed = [CHANCE * error if way.endswith("bf16") else ROUNDING for error in found["autocast"]]
        if any(error > most for error, most in zip(found[way], allowed, strict=True)):
            raise SystemExit(f"{name}, {way}: errors {found[way]} of the exits, allowed {allowed}.")


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
    turns = {f"{name} {chunk}": turn(call, images_BCHW, chunk) for name, call in calls.items() for chunk in chunks}
    took = take_turns(turns, rounds, warmup=1)
    return {name: min(chunks, key=lambda chunk: median(took[f"{name} {chunk}"])) for name in calls}


@torch.inference_mode()
def on(name: str, rounds: int, sorting: int, with_goals_alone: bool) -> tuple[list[rows.Row], dict[str, Any]]:
    """The rows of a network, and the figures behind them."""
    ours, plain = built(name)
    assert ours.image_shape is not None
    of_all = ways(ours, plain, with_goals_alone)
    found = errors(plain, of_all, torch.randn(64, *ours.image_shape))
    check(name, found)
    peaks = {f"peak, {precision}": product(dtype) for precision, dtype in DTYPES.items()}
    an_image = 2 * cost(ours).exits[-1].multiply_adds
    results, details = [], {}
    for size in BATCHES:
        images_BCHW = torch.randn(size, *ours.image_shape)
        calls = {way: call for way, call in of_all.items() if size == 1 or not way.startswith(UNPLANNED)}
        chunks = fastest(calls, images_BCHW, sorting)
        turns = {way: turn(call, images_BCHW, chunks[way]) for way, call in calls.items()}
        seconds = take_turns({**turns, **peaks}, rounds, warmup=1 if with_goals_alone else 2)
        for way in calls:
            about, times = f"{name}, batch {size}, {way}", seconds[way]
            of_peak = (
                an_image
                * size
                / median(times)
                / peak(seconds["peak, bf16" if way.endswith("bf16") else "peak, float32"])
            )
            details[f"batch {size}, {way}"] = {
                "milliseconds": rows.spread([1000 * s for s in times]),
                "chunk": chunks[way],
                "images a second": round(size / median(times), 1),
                "share of peak": round(of_peak, 3),
            }
            if way == "plain":
                continue
            least = GOALS.get(way)
            goal = "none" if least is None else f"at least {least:g} times as fast as plain float32"
            row = rows.paired(about, "times as fast", seconds["plain"], times, goal, at_least=least)
            results.append({**row, "of_peak": round(of_peak, 3)})
    scale = {way: [float(f"{error:.2g}") for error in of_exits] for way, of_exits in found.items()}
    return results, {"errors of the exits": scale, **details}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds, sorting = (rows.ENOUGH, 2) if options.quick else (options.rounds, 5)
    found = {name: on(name, rounds, sorting, options.quick) for name in options.networks}
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
    made = rows.parser(__doc__, rounds=25, threads=2)
    made.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS], metavar="NAME", help="these alone"
    )
    return made


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
