"""Early exits against the strongest straight path there is: how many times as fast, of how many times promised.

    python benchmarks/early_exits.py [--rounds 15] [--threads 2] [--quick] [--out FILE]

MSDNet-7 for CIFAR-100 with random weights, and the shipped Fashion-MNIST network, on random images. Thresholds are set
so that fixed shares of the images leave at each exit: 40, 20, 10, 10, 8, 6 and 6 % for the first, those of its policy
for a drop of 0.2 points on Fashion-MNIST's test images for the second. Batches of 1, 32 and 256, and a stream of
batches of 32.

Straight: the whole network to its last exit, no other head, by every backend that is installed (torch, onnxruntime,
OpenVINO), then by the fastest in every size of chunk; the fastest counts. Exits: the engine, likewise. `bf16`: both may
compute in bfloat16; `float32`: neither may. A few rounds sort them out by their best round, then the two winners take
turns anew, and nothing else with them. Promised: operations of the whole network over those of the policy.

Before anything is timed the engine's answers are compared with the policy's. One more row holds the engine's straight
path against OpenVINO called with nothing around it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import rows
import torch
from torch import Tensor

from offramp import backbones
from offramp.config import Spec
from offramp.costs import cost
from offramp.files import load
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.runtime import Engine, Form, Plan, usual_forms
from offramp.runtime.library import Segment
from offramp.runtime.openvino_ import OpenVino
from offramp.runtime.timing import conditions, take_turns

SHIPPED = Path(backbones.__file__).parents[1] / "shipped" / "fashion-mnist"
SHIPPED_NAME = "Fashion-MNIST's network"
STREAM, STREAM_BATCH = "stream", 32
SIZES: tuple[int | str, ...] = (1, 32, 256, STREAM)
GOALS = {
    ("MSDNet-7", "bf16"): dict(zip(SIZES, (2.5, 2.0, 2.2, 2.5), strict=True)),
    ("MSDNet-7", "float32"): dict(zip(SIZES, (2.5, 2.0, 3.2, 2.5), strict=True)),
}
CHUNKS = (16, 32, 64, 128)
USUAL = 64  # the chunk in which backends are sorted out
IMAGES = 256
SINGLES = 48  # images of a round, one at a time
SORTING = 3  # rounds
LEVEL = 1.03  # straight over the library alone, at most

Call = Callable[[], object]


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=15, threads=2)


def networks() -> Iterator[tuple[str, EarlyExitNet, tuple[float, ...]]]:
    """Names, networks, and the shares of images that leave at each exit."""
    torch.manual_seed(0)
    network = backbones.build(Spec("msdnet7-cifar100"), num_classes=100, image_shape=(3, 32, 32), damping=False).train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(64, 3, 32, 32))
    yield "MSDNet-7", network.eval(), (0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.06)
    yield shipped()


def shipped() -> tuple[str, EarlyExitNet, tuple[float, ...]]:
    """The second of them."""
    found = json.loads((SHIPPED / "evaluation.json").read_text())["dynamic"]["exits"]
    return SHIPPED_NAME, load(SHIPPED), tuple(exit["share"] for exit in found)


def policy_for(logits_KSC: Tensor, num_classes: int, shares: Sequence[float]) -> Policy:
    """The policy under which such shares of the images leave at each exit."""
    confidence_KS, _ = Policy((EVERYBODY,)).measure.over(logits_KSC, num_classes)
    here_S, thresholds = torch.ones(logits_KSC.shape[1], dtype=torch.bool), []
    for share, confidence_S in zip(shares[:-1], confidence_KS, strict=False):
        values = confidence_S[here_S].sort(descending=True).values
        count = round(share * len(here_S))
        thresholds.append(float((values[count - 1] + values[count]) / 2) if count else NOBODY)
        here_S &= confidence_S < thresholds[-1]
    return Policy((*thresholds, EVERYBODY))


Way = tuple[str, Form, int | None]  # straight or exits, what runs it, and its chunk


def call(way: Way, engines: dict[Form, Engine], size: int | str, images: Tensor) -> Call:
    """What is called for a round."""
    kind, form, chunk = way
    engine = engines[form].under({1: Plan(chunk=chunk, straight=kind == "straight")})
    batches = batches_of(size, images)
    if size == STREAM:
        return lambda: list(engine.stream(batches))
    return lambda: [engine(batch) for batch in batches]


def batches_of(size: int | str, images: Tensor) -> list[Tensor]:
    """The batches of a round."""
    if size == 1:
        return list(images[: min(SINGLES, len(images) // 4)].split(1))  # type: ignore[no-untyped-call]
    return list(images.split(STREAM_BATCH if isinstance(size, str) else size))  # type: ignore[no-untyped-call]


def fastest(
    kind: str, engines: dict[Form, Engine], size: int | str, images: Tensor, tried: dict[str, float]
) -> dict[str, Way]:
    """The fastest way in each precision: of the forms, then of the chunks. Milliseconds an image go to `tried`."""

    def sorted_out(ways: Sequence[Way]) -> list[Way]:
        turns = {str(number): seconds(call(way, engines, size, images)) for number, way in enumerate(ways)}
        took = take_turns(turns, SORTING, warmup=1)
        ms = {way: 1000 * min(took[str(number)]) / count for number, way in enumerate(ways)}
        tried.update({described(way): round(value, 4) for way, value in ms.items()})
        return sorted(ms, key=ms.__getitem__)

    count = sum(map(len, batches_of(size, images)))
    chunk = None if size in (1, 32) else USUAL
    order = sorted_out([(kind, form, chunk) for form in engines])
    found = {}
    for precision in ("float32", "bf16"):
        best = next(way for way in order if precision == "bf16" or way[1].precision == "float32")
        if chunk is not None:
            chunks = (*CHUNKS, *([] if size == STREAM else [None]))
            best = sorted_out([(kind, best[1], one) for one in chunks])[0]
        found[precision] = best
    return found


def described(way: Way) -> str:
    """A way, in words."""
    kind, form, chunk = way
    return f"{kind}, {form}" + ("" if chunk is None else f", chunks of {chunk}")


def seconds(call: Call) -> Callable[[], float]:
    """A function that calls and says how long it took."""

    def run() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return run


def against_the_library(
    name: str, network: EarlyExitNet, policy: Policy, images: Tensor, rounds: int
) -> list[rows.Row]:
    """The engine's straight path over a compiled model that is handed a tensor and nothing else."""
    found = []
    engine = Engine(network, policy, backend="openvino", plan=Plan(chunk=None, straight=True))
    assert isinstance(engine.program, OpenVino)
    for size in (1, 32):
        batch = images[:size].contiguous()
        engine(batch)
        model: Any = engine.program._model(Segment(0, network.num_exits - 1, True, False), size)
        times = max(1, SINGLES // size)
        array = batch.numpy()

        def bare(request: Any = model.request, array: Any = array, times: int = times) -> None:
            for _ in range(times):
                request.infer([array], share_inputs=True, share_outputs=True)

        def ours(batch: Tensor = batch, times: int = times) -> None:
            for _ in range(times):
                engine(batch)

        took = take_turns({"ours": seconds(ours), "bare": seconds(bare)}, rounds)
        label = f"{name}, batch {size}, float32: straight over OpenVINO alone"
        found.append(
            rows.paired(label, "times its time", took["ours"], took["bare"], f"at most {LEVEL}", at_most=LEVEL)
        )
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The rows, and every way that was tried."""
    torch.set_num_threads(options.threads)
    where = conditions()
    num_rounds = 5 if options.quick else options.rounds
    results: list[rows.Row] = []
    table = [
        "| network, batch, precision | straight | exits | times as fast | promised |",
        "|---|---|---|---|---|",
    ]
    tried: dict[str, dict[str, float]] = {}
    sizes = (1, 32, STREAM) if options.quick else SIZES
    for name, network, shares in networks():
        generator, number = torch.Generator().manual_seed(1), IMAGES // 2 if options.quick else IMAGES
        assert network.image_shape is not None
        images = torch.randn(number, *network.image_shape, generator=generator)
        with torch.inference_mode():
            logits_KSC = torch.cat([network(batch) for batch in images.split(64)], 1)  # type: ignore[no-untyped-call]
        policy = policy_for(logits_KSC, network.num_classes, shares)
        engines: dict[Form, Engine] = {}
        for form in usual_forms(torch.device("cpu"), bf16=True):
            engine = Engine(network, policy, form=form)
            agreed = engine.agreement(engine(images), logits_KSC, policy)
            if agreed.wrong:
                raise SystemExit(f"{name}, {form}: {agreed.wrong} of {agreed.images} answers are not the policy's.")
            engines[form] = engine
        exits_S = policy.choose(logits_KSC, network.num_classes).exits_S
        spent_K = torch.tensor(next(iter(engines.values())).operations(), dtype=torch.float64)
        promised = cost(network).path[-1].operations / spent_K[exits_S].mean().item()
        for size in sizes:
            about = f"{name}, {'stream' if size == STREAM else f'batch {size}'}"
            count = sum(map(len, batches_of(size, images)))
            tried[about] = {}
            best = {kind: fastest(kind, engines, size, images, tried[about]) for kind in ("straight", "exits")}
            for precision in ("float32", "bf16"):
                ways = {kind: best[kind][precision] for kind in best}
                turns = {kind: seconds(call(way, engines, size, images)) for kind, way in ways.items()}
                took = take_turns(turns, num_rounds)
                goal = GOALS.get((name, precision), {}).get(size)
                words = "none" if goal is None else f"at least {goal:g}; promised {promised:.2f}"
                label = f"{about}, {precision}"
                row = rows.paired(label, "times as fast", took["straight"], took["exits"], words, at_least=goal or 0.0)
                results.append(row)
                cells = [
                    f"{1000 * median(took[kind]) / count:.3f} ms ({described(ways[kind]).partition(', ')[2]})"
                    for kind in ("straight", "exits")
                ]
                ratio = f"{row['ratio']:.2f} [{row['at_least']:.2f}, {row['at_most']:.2f}]"
                table.append(f"| {label} | {' | '.join(cells)} | {ratio} | {promised:.2f} |")
        results += against_the_library(name, network, policy, images, num_rounds)
    return {
        "what": "early exits over the strongest straight path",
        **where,
        "rounds": num_rounds,
        "quick": options.quick,
        "rows": results,
        "table": table,
        "tried, ms an image": tried,
    }


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
