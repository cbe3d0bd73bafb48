"""The exported ONNX file: does it skip as much time as operations, and how fast is it beside the eager engine?

    python benchmarks/exported.py [--rounds 25] [--threads 2] [--quick] [--out FILE]

MSDNet-7 for CIFAR-100, RANet-6, the `auto` network for images of Fashion-MNIST's size, and a ResNet-18 with exits, on
random images, under thresholds that let about half of those that come leave at each exit, one at a time and in batches
of 32. Promised: operations of running straight to the last exit with no other head, over the policy's mean on these
images. Realised: time of the same network exported with its last exit alone, run by the same runtime, over time of the
file that skips. The engine is torch's, in its default form. All take turns, and the answers are compared with the
policy's first.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import onnxruntime
import rows
import torch
from torch import Tensor

from offramp import backbones, export
from offramp.backbones.prefix import shortened
from offramp.config import Spec
from offramp.costs import cost
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Answers, Engine
from offramp.runtime.agreement import FLOAT32, agreement
from offramp.runtime.timing import conditions, take_turns

NETWORKS: dict[str, tuple[Spec, int, tuple[int, int, int]]] = {
    "auto, 28 pixels": (Spec("auto"), 10, (1, 28, 28)),
    "MSDNet-7": (Spec("msdnet7-cifar100"), 100, (3, 32, 32)),
    "RANet-6": (Spec("ranet"), 100, (3, 32, 32)),
    "ResNet-18 with exits": (Spec("torchvision/resnet18", {"at": "auto"}), 100, (3, 64, 64)),
}
QUICK = ("auto, 28 pixels",)
KEPT = {1: 0.8, 32: 0.6}  # of the promised speed-up, at least, by size of batch
IMAGES = 64


def built(name: str) -> tuple[EarlyExitNet, Policy, Tensor, Tensor]:
    """A network with running statistics of random images, a policy, images, and their logits of every exit."""
    spec, num_classes, image_shape = NETWORKS[name]
    torch.manual_seed(0)
    network = backbones.build(spec, num_classes=num_classes, image_shape=image_shape, damping=False).train()
    images_SCHW = torch.randn(IMAGES, *image_shape)
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(IMAGES, *image_shape))
        logits_KSC = network.eval()(images_SCHW)
    confidence_KS, _ = Policy((EVERYBODY,)).measure.over(logits_KSC, num_classes)
    here_S, thresholds = torch.ones(IMAGES, dtype=torch.bool), []
    for confidence_S in confidence_KS[:-1]:
        values = confidence_S[here_S].sort().values
        thresholds.append(float(values[(len(values) - 1) // 2 : len(values) // 2 + 1].mean()))
        here_S &= confidence_S < thresholds[-1]
    return network, Policy((*thresholds, EVERYBODY)), images_SCHW, logits_KSC


def session(network: EarlyExitNet, policy: Policy, threads: int) -> onnxruntime.InferenceSession:
    """The network's file, run by as many threads as torch; those that wait do not spin: the engine would pay for it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        path = export.onnx_file(network, policy, Path(folder) / "network.onnx")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def turn(call: Callable[[Any], object], batches: list[Any]) -> Callable[[], float]:
    """A function that runs all batches and returns the seconds."""

    def run() -> float:
        start = time.perf_counter()
        for batch in batches:
            call(batch)
        return time.perf_counter() - start

    return run


def on(name: str, rounds: int, threads: int) -> tuple[list[rows.Row], dict[str, Any]]:
    """The rows of a network, and the figures behind them."""
    network, policy, images_SCHW, logits_KSC = built(name)
    started = time.perf_counter()
    skips = session(network, policy, threads)
    details: dict[str, Any] = {"seconds to export and load": round(time.perf_counter() - started, 1)}
    straight = session(shortened(network, network.num_exits), Policy((EVERYBODY,)), threads)
    labels, exits, confidence, _ = map(torch.from_numpy, skips.run(None, {"images": images_SCHW.numpy()}))
    found = agreement(Answers(labels, exits, confidence), logits_KSC, policy, network.num_classes, FLOAT32)
    if found.wrong:
        raise SystemExit(f"{name}: {found.wrong} of {found.images} answers are not the policy's.")
    counted = cost(network)
    spent = fmean(counted.exits[k].operations for k in exits.tolist())
    promised = counted.path[-1].operations / spent
    details |= {"images by exit": exits.bincount(minlength=network.num_exits).tolist(), "promised": round(promised, 3)}
    engine = Engine(network, policy)
    results: list[rows.Row] = []
    for size, kept in KEPT.items():
        tensors = list(images_SCHW.split(size))  # type: ignore[no-untyped-call]
        arrays = [{"images": images.numpy()} for images in tensors]
        ways = {
            "file": turn(lambda given: skips.run(None, given), arrays),
            "straight file": turn(lambda given: straight.run(None, given), arrays),
            "engine": turn(engine, tensors),
        }
        took = take_turns(ways, rounds)
        about = f"{name}, batch {size}"
        goal = f"at least {kept:g} of the promised speed-up"
        as_promised = [promised * seconds for seconds in took["file"]]
        results.append(
            rows.paired(f"{about}, kept", "of promised", took["straight file"], as_promised, goal, at_least=kept)
        )
        beside = f"{about}, beside the engine"
        results.append(rows.paired(beside, "times as fast", took["engine"], took["file"], "none"))
        details[f"batch {size}, milliseconds an image"] = {
            way: rows.spread([1000 * seconds / IMAGES for seconds in times]) for way, times in took.items()
        }
    return results, details


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds = rows.ENOUGH if options.quick else options.rounds
    found = {name: on(name, rounds, options.threads) for name in (QUICK if options.quick else NETWORKS)}
    return {
        "what": "the exported ONNX file: realised over promised speed-up, and its time beside the eager engine",
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
