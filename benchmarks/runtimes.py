"""The engine run by onnxruntime against the engine run by torch, side by side.

    python benchmarks/runtimes.py [--rounds 25] [--threads 2] [--quick] [--out FILE]

MSDNet-7 for CIFAR-100, the `auto` network for images of Fashion-MNIST's size, and, where torchvision's classifiers can
be given exits, a ResNet-18; with and without exits that take images, in batches of 1, 32 and 256 random images. Of the
torch forms each batch takes the one that is fastest in it; then it and onnxruntime take turns anew. Thresholds let
about half of those that come leave at each exit; straight is the network run to its last exit for every image.

Before anything is timed both engines' answers are compared with the policy's.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from torch import Tensor

from offramp import backbones
from offramp.config import Spec
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine, Form, Plan, usual_forms
from offramp.runtime.timing import conditions, take_turns

NETWORKS: dict[str, tuple[Spec, int, tuple[int, int, int]]] = {
    "MSDNet-7": (Spec("msdnet7-cifar100"), 100, (3, 32, 32)),
    "auto, 28 pixels": (Spec("auto"), 10, (1, 28, 28)),
    "ResNet-18 with exits": (Spec("torchvision/resnet18", {"at": "auto"}), 100, (3, 64, 64)),
}
QUICK = ("auto, 28 pixels",)
BATCHES = (1, 32, 256)
FASTER = {1: 1.5, 32: 1.0, 256: 0.8}  # times as fast as the best torch form, at least
ONNX = Form(backend="onnxruntime")
LOOKED_AT = 64  # images that thresholds are taken from
IN_A_TURN = 16  # images at least
CHUNK = 64

Call = Callable[[Tensor], object]


def built(name: str) -> tuple[EarlyExitNet, Policy, Tensor]:
    """A network with running statistics of random images, a policy by which some leave at each exit, and images."""
    spec, num_classes, image_shape = NETWORKS[name]
    torch.manual_seed(0)
    network = backbones.build(spec, num_classes=num_classes, image_shape=image_shape, damping=False).train()
    images_BCHW = torch.randn(max(BATCHES), *image_shape)
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(LOOKED_AT, *image_shape))
        logits_KBC = network.eval()(images_BCHW[:LOOKED_AT])
    confidence_KB, _ = Policy((EVERYBODY,)).measure.over(logits_KBC, network.num_classes)
    thresholds = confidence_KB[:-1].median(-1).values.tolist()
    return network, Policy((*thresholds, EVERYBODY)), images_BCHW


def engines(network: EarlyExitNet, policy: Policy) -> tuple[dict[str, Engine], float]:
    """One for each form, and the seconds that making onnxruntime's sessions took."""
    plan = Plan(chunk=CHUNK)
    device = next(network.parameters()).device
    forms = [form for form in usual_forms(device) if form != ONNX]
    made = {str(form): Engine(network, policy, form=form, plan=plan) for form in forms}
    started = time.perf_counter()
    made[str(ONNX)] = Engine(network, policy, form=ONNX, plan=plan)
    return made, time.perf_counter() - started


def check(name: str, engine: Engine, images_BCHW: Tensor) -> None:
    """Answers that are not the policy's are not timed."""
    with torch.inference_mode():
        logits_KBC = engine.network(images_BCHW)
    found = engine.agreement(engine(images_BCHW), logits_KBC, engine.policy)
    if found.wrong:
        raise SystemExit(
            f"{name}, {engine.program.form}: {found.wrong} of {found.images} answers are not the policy's."
        )


def turn(call: Call, images_BCHW: Tensor) -> Callable[[], float]:
    """A function that runs the batch some times, and returns the seconds of one."""
    times = max(1, IN_A_TURN // len(images_BCHW))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            call(images_BCHW)
        return (time.perf_counter() - start) / times

    return run


def on(name: str, rounds: int, sorting: int) -> tuple[list[rows.Row], dict[str, Any]]:
    """The rows of a network, and the figures behind them."""
    network, policy, images_SCHW = built(name)
    made, seconds = engines(network, policy)
    for engine in made.values():
        check(name, engine, images_SCHW[:LOOKED_AT])
    results: list[rows.Row] = []
    details: dict[str, Any] = {"seconds until onnxruntime runs": round(seconds, 2)}
    for size in BATCHES:
        images_BCHW = images_SCHW[:size]
        for way, calls in (
            ("exits", {form: engine.__call__ for form, engine in made.items()}),
            ("straight", {form: engine.straight(size) for form, engine in made.items()}),
        ):
            turns = {form: turn(call, images_BCHW) for form, call in calls.items()}
            took = take_turns(turns, sorting, warmup=1)
            best = min((form for form in turns if form != str(ONNX)), key=lambda form: median(took[form]))
            took = take_turns({form: turns[form] for form in (best, str(ONNX))}, rounds)
            goal = f"at least {FASTER[size]:g} times as fast as torch's fastest form"
            about = f"{name}, batch {size}, {way}"
            results.append(
                rows.paired(about, "times as fast", took[best], took[str(ONNX)], goal, at_least=FASTER[size])
            )
            details[f"batch {size}, {way}"] = {
                "torch's fastest form": best,
                **{form: rows.spread([1000 * one for one in times]) for form, times in took.items()},
            }
    return results, details


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds, sorting = (rows.ENOUGH, 3) if options.quick else (options.rounds, 5)
    found = {name: on(name, rounds, sorting) for name in (QUICK if options.quick else NETWORKS)}
    return {
        "what": "the engine run by onnxruntime, over the engine run by torch in its fastest form",
        **before,
        "rounds": rounds,
        "rows": [row for own, _ in found.values() for row in own],
        "details": {name: figures for name, (_, figures) in found.items()},
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    return rows.parser(__doc__, rounds=25, threads=2)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
