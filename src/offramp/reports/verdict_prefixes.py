"""The smaller networks that early exits are held against: prefixes of a run's network, trained with one exit alone.

They are runs of their own, trained as the run was: the same images, epochs, optimiser, schedule, augmentation and seed.
Two things are left out because they exist for the sake of several exits. A damping loss keeps an exit that is sure of
an image from pulling on the trunk that others share; with one exit nobody else is there, so plain cross-entropy is
taken, without the neuron. And a rule of this package's other than the plain step combines or orders exits' gradients.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from offramp import objectives, rules
from offramp.backbones.prefix import shortened, shorter
from offramp.config import Spec, TrainConfig
from offramp.costs import cost
from offramp.data import Parts
from offramp.devices import device_named
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, rebuild
from offramp.objectives import CrossEntropy, Objective
from offramp.rules import Standard, TrainingRule
from offramp.runs import RunFolder, load, start_from
from offramp.training import fit

STEPS = 3  # timed for the estimate, after one that is not


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The prefixes of a run's network and where they are trained.

    Attributes:
        network: The run's.
        config: What the run's `config.json` holds.
        parts: The data.
        runs: Folder of their runs.
    """

    network: EarlyExitNet
    config: Mapping[str, Any]
    parts: Parts
    runs: Path

    @property
    def seed(self) -> int:
        """The run's."""
        return int(self.config["training"].get("seed", 0))

    def folder(self, exit: int, seed: int) -> RunFolder:
        """The run up to `exit` (from 1): `prefix-2`; with another seed than the first run's, `prefix-2-seed-1`."""
        return RunFolder(self.runs / (f"prefix-{exit}" if seed == self.seed else f"prefix-{exit}-seed-{seed}"))

    def finished(self, exit: int, seed: int) -> EarlyExitNet | None:
        """The trained network, in evaluation mode; None where there is none yet.

        Raises:
            UsageError: A folder that holds something else.
        """
        folder = self.folder(exit, seed)
        if not folder.weights.is_file():
            return None
        there = folder.read_config()
        spec = self.built(exit, seed).spec
        same_images = (there.get("images") or {}).get("train") == self.parts.train.fingerprint()
        if spec is None or there["network"] != spec.to_json() or not same_images:
            raise UsageError(
                f"{folder.path} is not the run's network up to exit {exit}, trained on the same images: name another "
                "folder with --runs."
            )
        return load(folder.path)

    def train(self, exit: int, seed: int) -> EarlyExitNet:
        """The same, trained as far as it is not yet: see `offramp.training.fit`."""
        network = self.built(exit, seed)
        if not all(parameter.requires_grad for parameter in network.parameters()):
            raise UsageError(
                "The run's network has parts that another run trained and that are frozen here, so no smaller one can "
                "be trained the same way: give --no-train."
            )
        training = dataclasses.replace(self.training, seed=seed)
        out = self.folder(exit, seed).path
        return fit(network, self.objective, self.parts.train, self.parts.val, training, out=out, rule=self.rule)

    def built(self, exit: int, seed: int) -> EarlyExitNet:
        """The network before it is trained: with the weights that the run's network began with, as far as it has them.

        Raises:
            UsageError: A network that was built by hand.
        """
        recipe, init = self.config["network"], self.config["training"].get("init")
        if recipe is None:
            raise UsageError(
                "The run's network was built by hand, so no smaller one can be built: give --no-train, or leave the "
                "recipe on it with offramp.network.builder."
            )
        torch.manual_seed(seed)  # of the initial weights, as for the run
        if init is None:
            return shorter(recipe, exit, self._neuron)
        network, whole = shorter(recipe, exit, self.network.damping), rebuild(Spec.from_json(recipe))
        start_from(whole, init)
        network.load_state_dict(shortened(whole, exit).state_dict())
        return network

    @property
    def _neuron(self) -> bool:
        return self.network.damping and self._own_objective.damping_neuron != "required"

    @property
    def _own_objective(self) -> Objective:
        return objectives.build(Spec.from_json(self.config["objective"]))

    @property
    def objective(self) -> Objective:
        """The run's, or cross-entropy in the place of a loss that needs the damping neuron."""
        own = self._own_objective
        return CrossEntropy() if own.damping_neuron == "required" else own

    @property
    def rule(self) -> TrainingRule:
        """The plain step in the place of rules for several exits; a rule of somebody's own is kept."""
        spec = self.config.get("rule")
        if spec is None or spec["name"].startswith(f"{rules.__name__}."):
            return Standard()
        return rules.build(Spec.from_json(spec))

    @property
    def training(self) -> TrainConfig:
        """The run's settings, without what only makes records; with as many threads as there are."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.config["training"].items()}
        whole = TrainConfig(**values)
        return dataclasses.replace(whole, init=None, threads=None, xray=0, tensorboard=False, keep_best=False)

    def words(self) -> tuple[str, ...]:
        """How they are trained, in sentences."""
        own, name = self._own_objective, objectives.called(self.config["objective"])
        epochs = self.training.epochs
        said = [
            f"Each smaller network is the run's, up to its exit, with that exit alone, trained on the same images for "
            f"{epochs} epoch{'s' if epochs > 1 else ''} with the run's settings; what only later stages read is not "
            "computed."
        ]
        if own.damping_neuron == "required":
            said.append(
                f"The run's {name} damps an exit for the sake of the others; with one exit plain cross-entropy is "
                "taken, without the neuron."
            )
        rule = (self.config.get("rule") or {}).get("name", "")
        if rule.startswith(f"{rules.__name__}.") and not rule.endswith(f":{Standard.__qualname__}"):
            said.append(f"The run's rule {rule.rpartition(':')[2]} is for several exits and was left out.")
        if self.config["training"].get("init") is not None:
            said.append("They start from the weights that the run started from.")
        return tuple(said)

    def seconds(self, missing: Iterable[tuple[int, int]]) -> float:
        """About how long training the `missing` ones (exit, seed) takes, from a few steps of the largest.

        Good for a factor of two: what is watched after an epoch and a faster form of training are left aside.
        """
        left = {job: self._left(*job) for job in missing}
        if not left:
            return 0.0
        shape = self.parts.train.image_shape
        counts = {exit: cost(self.built(exit, self.seed), shape).exits[0].operations for exit, _ in left}
        largest = max(counts, key=counts.__getitem__)
        step = self._step(largest) / counts[largest]
        steps = self.training.epochs * self.parts.train.num_batches
        return sum(step * counts[exit] * steps * share for (exit, _), share in left.items())

    def _left(self, exit: int, seed: int) -> float:
        """Share of the epochs that are still to be trained."""
        folder = self.folder(exit, seed)
        return 0.0 if folder.weights.is_file() else 1 - len(folder.read_metrics()) / self.training.epochs

    def _step(self, exit: int) -> float:
        """Seconds of a training step, the median of a few."""
        device = device_named(self.training.device)
        network, batch = self.built(exit, self.seed).to(device).train(), next(self.parts.train.batches(seed=self.seed))
        images_BCHW, targets_B = batch.images_BCHW.to(device), batch.targets_B.to(device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
        seconds = []
        for _ in range(1 + STEPS):
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = self.objective(network(images_BCHW), targets_B)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # wait for the device
            seconds.append(time.perf_counter() - started)
        return median(seconds[1:])


def in_words(seconds: float) -> str:
    """`40 s`, `4 min`, `2.3 h`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
