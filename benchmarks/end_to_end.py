"""What training costs beside its steps: a small MSDNet on Fashion-MNIST, end to end, over the bare step.

    python benchmarks/end_to_end.py [--rounds 61] [--threads 1] [--quick] [--out FILE]

Images of Fashion-MNIST's size (random pixels; their values do not matter), the `auto` network for them, dynamic
power-sqrt, batch 64. The rule given to `offramp.fit` takes a second step in every iteration, on a batch that is ready
in memory, now before the one that it is asked for and now after it: the bare step, of the same network in the same
form. What an iteration of `fit` takes without it is a step end to end: waiting for data, seeds, rates, sums for the
metrics, what a person sees. A round is an iteration.

An epoch ends with a look at held-out images, a checkpoint and the metrics. In epochs of a single step with 2,500 images
to look at this is what an iteration takes beyond two bare steps; it is spread over the 860 steps that an epoch of
Fashion-MNIST has.

Wall-clock time decides. Beside it stands the processor's time of the same steps, which other work on the machine moves
less, and which is the same where one thread computes and nothing waits.
"""

import argparse
import tempfile
import time
from typing import Any

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import numpy as np
import numpy.typing as npt
import rows
import torch

import offramp
from offramp import backbones, data, objectives
from offramp.config import Spec, TrainConfig
from offramp.data import Batch, Parts
from offramp.rules import Outcome, TrainingRule
from offramp.runtime.timing import conditions, ratio

WITHIN = 1.05
BATCH, SKIPPED = 64, 4
EPOCH, HELD_OUT = 860, 5000  # steps and held-out images, of which half are looked at


def clocks() -> npt.NDArray[np.float64]:
    """Seconds on the wall's clock and on this process's."""
    return np.array([time.perf_counter(), time.process_time()])


class Beside(TrainingRule):
    """The standard rule, with a bare step beside each."""

    def __init__(self, ready: Batch) -> None:
        self.ready = ready
        self.started: list[npt.NDArray[np.float64]] = []  # when an iteration began
        self.bare: list[npt.NDArray[np.float64]] = []  # seconds of its bare step

    def step(self, batch: Batch, progress: float) -> Outcome:
        self.started.append(clocks())
        if len(self.started) % 2:
            self._bare_step()
            return self.bench.descend(batch, progress)
        outcome = self.bench.descend(batch, progress)
        self._bare_step()
        return outcome

    def _bare_step(self) -> None:
        start = clocks()
        self.bench.descend(self.ready, 0.0)
        self.bare.append(clocks() - start)

    def pairs(self) -> npt.NDArray[np.float64]:
        """Seconds of iterations without their bare steps, and of these, on both clocks: `[2, rounds, clocks]`.

        The first do not count, nor does the last, whose end nobody saw.
        """
        bare = np.stack(self.bare[:-1])
        return np.stack([np.diff(self.started, axis=0) - bare, bare])[:, SKIPPED:]


def images(num_training: int, held_out: int) -> Parts:
    """Random images as Fashion-MNIST's, `num_training` of them for training."""
    num_images = num_training + held_out
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
    labels = np.arange(num_images) % 10
    test = pixels[:100], labels[:100]
    return data.arrays(pixels, labels, *test, padding=4, flip=True, batch_size=BATCH, holdout=held_out)


def fit(parts: Parts, epochs: int, threads: int) -> npt.NDArray[np.float64]:
    """`offramp.fit` as a user calls it, with `Beside`: its pairs."""
    rule = Beside(next(parts.train.batches()))
    torch.manual_seed(0)
    network = backbones.build(Spec("auto"), num_classes=10, image_shape=(1, 28, 28), damping=True)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(epochs=epochs, lr=0.01, threads=threads, device="cpu")
        offramp.fit(network, objectives.dynamic(), parts.train, parts.val, config, out=folder, rule=rule)
    return rule.pairs()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds, ends = (21, 3) if options.quick else (options.rounds, 7)
    steps, bare = fit(images((rounds + SKIPPED + 1) * BATCH, 0), 1, options.threads)
    last_steps, last_bare = fit(images(BATCH, HELD_OUT), ends + SKIPPED + 1, options.threads)
    ending = np.median(last_steps / last_bare - 1, axis=0)  # in bare steps
    whole = steps + bare * ending / EPOCH
    between, processor_between = (1000 * (steps - bare)).T.tolist()
    (steps, processor_steps), (bare, processor_bare), (whole, processor_whole) = (
        seconds.T.tolist() for seconds in (steps, bare, whole)
    )
    goal = f"at most {WITHIN:g}"
    return {
        "what": "training end to end over the bare step, small MSDNet, Fashion-MNIST's size, batch 64",
        **before,
        "rounds": rounds,
        "rows": [
            rows.paired("step of fit within an epoch / bare step", "", steps, bare, goal, at_most=WITHIN),
            rows.paired("step of fit over a whole epoch / bare step", "", whole, bare, goal, at_most=WITHIN),
        ],
        "milliseconds": {
            "bare step": rows.spread([1000 * s for s in bare]),
            "step of fit": rows.spread([1000 * s for s in steps]),
            "step of fit less bare step": rows.spread(between),
        },
        "end_of_an_epoch_in_bare_steps": round(float(ending[0]), 2),
        "by_the_processor's_time": {
            "within an epoch": ratio(processor_steps, processor_bare),
            "over a whole epoch": ratio(processor_whole, processor_bare),
            "milliseconds between": rows.spread(processor_between),
        },
    }


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=61, threads=1)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
