"""The smaller networks that early exits are held against: prefixes of a run's network, trained with one exit alone.

They are runs of their own, trained as the run was: from the weights that it began with, on the same images, with the
same epochs, optimiser, schedule, augmentation and seed. A folder in which any of this is different is refused.
Two things are left out because they exist for the sake of several exits. A damping loss keeps an exit that is sure of
an image from pulling on the trunk that others share; with one exit there is no other, so plain cross-entropy is
taken, without the neuron. And a rule of this package's other than the plain step combines or orders exits' gradients.
"""

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from offramp import objectives, registry, rules
from offramp.backbones.attached import zoo
from offramp.backbones.foreign import start_from
from offramp.backbones.prefix import shortened, shorter
from offramp.config import FORMER_FORMS, Spec, TrainConfig, determining, differences
from offramp.costs import cost
from offramp.data import Parts
from offramp.devices import device_named
from offramp.errors import UsageError, first_line
from offramp.files import RunConfig, RunFolder, load, weights_of
from offramp.graphs.exit_writes import check_skippable
from offramp.json_files import convert
from offramp.network import EarlyExitNet, rebuild
from offramp.objectives import CrossEntropy, Objective
from offramp.rules import Standard, TrainingRule
from offramp.training.fit import fit
from offramp.training.job import Job

STEPS = 3  # timed for the estimate, after one that is not
SHOWN = 3  # differences of a folder that holds something else, at most
NAMED = "offramp.backbones.attached.zoo:named"  # the recipe of a library's model
HUB = "hub"  # of an origin's `weights`: fetched by timm or torchvision


@dataclass(frozen=True, eq=False)
class Prefixes:
    """The prefixes of a run's network and where they are trained.

    Attributes:
        network: The run's.
        config: What the run's `config.json` holds.
        runs: Folder of their runs.
    """

    run: RunFolder
    network: EarlyExitNet
    config: RunConfig
    parts: Parts
    runs: Path

    @property
    def seed(self) -> int:
        """The run's."""
        return self.config.training.seed

    def folder(self, exit: int, seed: int) -> RunFolder:
        """The run up to `exit` (from 1): `prefix-2`; with another seed than the first run's, `prefix-2-seed-1`."""
        name = f"prefix-{exit}" if seed == self.seed else f"prefix-{exit}-seed-{seed}"
        return RunFolder(self.runs / name, self.run.allow_code)

    def _naming(self) -> AbstractContextManager[None]:
        """While the run's own names are built."""
        return self.run.naming(self.config)

    def check_network(self) -> None:
        """Refuse a network whose later answers change where it is cut: an exit writes into a map that is read later.

        Raises:
            UsageError: Which exit, and who reads.
        """
        check_skippable(self.network, self.parts.test.image_shape)

    def finished(self, exit: int, seed: int) -> EarlyExitNet | None:
        """The trained network, in evaluation mode; None where there is none yet.

        Raises:
            UsageError: See `check`.
        """
        folder = self.folder(exit, seed)
        if not folder.weights.is_file():
            return None
        self.check(exit, seed)
        return load(folder.path, allow_code=folder.allow_code)

    def check(self, exit: int, seed: int) -> None:
        """Refuse a folder in which another training was begun or finished.

        Raises:
            UsageError: What is different there.
        """
        folder = self.folder(exit, seed)
        if not folder.config.is_file():
            return
        lines = differences(
            {**determining(folder.read_config().values), "origin": _start(folder.read_origin())},
            {**determining(self._job(exit, seed).describe()), "origin": _start(self.origin)},
        )
        if lines:
            shown = [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]
            raise UsageError(
                f"{folder.path} is not the run's network up to exit {exit}, trained as the run was "
                f"({'; '.join(shown)}): name another folder with --runs."
            )

    def train(self, exit: int, seed: int) -> EarlyExitNet:
        """The same, trained as far as it is not yet: see `offramp.training.fit`."""
        self.check(exit, seed)
        job = dataclasses.replace(self._job(exit, seed), network=self.built(exit, seed))
        if not all(parameter.requires_grad for parameter in job.network.parameters()):
            raise UsageError(
                "The run's network has parts that another run trained and that are frozen here, so no smaller one can "
                "be trained the same way: give --no-train."
            )
        out = self.folder(exit, seed).path
        return fit(job.network, job.objective, job.train, job.val, job.config, out=out, rule=job.rule)

    def _job(self, exit: int, seed: int) -> Job:
        """What is trained, of a network whose weights are anything."""
        training = dataclasses.replace(self.training, seed=seed)
        return Job(self.blank(exit), self.objective, self.parts.train, self.parts.val, training, self.rule)

    def blank(self, exit: int) -> EarlyExitNet:
        """The network with weights that mean nothing.

        Raises:
            UsageError: A network that was built by hand.
        """
        with self._naming():
            return shorter(self._recipe.to_json(), exit, self._neuron)

    def built(self, exit: int, seed: int) -> EarlyExitNet:
        """The network before it is trained: with the weights that the run's network began with, as far as it has them.

        Raises:
            UsageError: A network that was built by hand; weights that cannot be had any more.
        """
        network = self.blank(exit)
        weights = shortened(self._whole(seed), exit).state_dict()
        for name, own in network.state_dict().items():
            if own.shape[:1] == (network.num_classes,) and weights[name].shape[:1] == (network.num_classes + 1,):
                weights[name] = weights[name][:-1]  # without the damping neuron, which is the last
        network.load_state_dict(weights)
        network.origin = self.origin or None
        return network

    def _whole(self, seed: int) -> EarlyExitNet:
        """The run's network as it began, where `seed` is the run's."""
        spec, init = self._recipe, self._init
        if init is not None:
            self._check_init(init)
        torch.manual_seed(seed)  # of the initial weights, as for the run
        if self.origin.get("weights") == HUB:
            whole = self._from_hub(spec)
        else:
            with self._naming():
                whole = rebuild(spec)
        if init is not None:
            start_from(whole, init)
        return whole

    def _from_hub(self, spec: Spec) -> EarlyExitNet:
        """A run's recipe asks no hub, because a finished run has weights of its own; here the hub's are wanted.

        It is the verdict that asks for them, of a library's model by the name that the library has for it.
        """
        asking = Spec(spec.name, {**spec.args, **({"pretrained": True} if "pretrained" in spec.args else {})})
        try:
            if spec.name == NAMED:
                return zoo.named(**asking.args)
            with self._naming():
                return rebuild(asking)
        except Exception as error:  # the libraries' ways to say that there is no connection have no common class
            raise UsageError(
                f"The run began with pretrained weights of {self.origin.get('model')}, which cannot be had now "
                f"({first_line(error)}), so no smaller network can begin with them: give --no-train, or try again "
                "where the hub can be reached."
            ) from error

    def _check_init(self, init: str) -> None:
        """Refuse weights that are not those that the run started from, as far as it wrote down which these were."""
        try:
            with open(weights_of(init), "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except (OSError, UsageError):
            digest = None
        if digest is None or self.origin["init"]["sha256"] not in (None, digest):
            raise UsageError(
                f"The run started from {init}, which {'cannot be read' if digest is None else 'holds other weights'} "
                "now, so no smaller network can start from the same: give --no-train."
            )

    @property
    def origin(self) -> dict[str, Any]:
        """Where the weights that they begin with come from: what the run's `origin.json` says."""
        origin, init = dict(self.network.origin or {}), self._init
        if init is not None:
            origin.setdefault("init", {"file": init, "sha256": None})  # of a run that did not write it down
        return origin

    @property
    def _recipe(self) -> Spec:
        if self.config.network is None:
            raise UsageError(
                "The run's network was built by hand, so no smaller one can be built: give --no-train, or leave the "
                "recipe on it with offramp.network.builder."
            )
        return self.config.network

    @property
    def _init(self) -> str | None:
        return self.config.training.init

    @property
    def _neuron(self) -> bool:
        return self.network.damping and self._own_objective.damping_neuron != "required"

    @property
    def _own_objective(self) -> Objective:
        with self._naming():
            return objectives.build(self.config.objective)

    @property
    def objective(self) -> Objective:
        """The run's, or cross-entropy in the place of a loss that needs the damping neuron."""
        own = self._own_objective
        return CrossEntropy() if own.damping_neuron == "required" else own

    @property
    def rule(self) -> TrainingRule:
        """The plain step in the place of rules for several exits; a rule that is not of this package is kept."""
        spec = self.config.rule
        if spec is None or spec.name.startswith(f"{rules.__name__}."):
            return Standard()
        with self._naming():
            return rules.build(spec)

    @property
    def training(self) -> TrainConfig:
        """The run's settings, without what only makes records; with as many threads as there are.

        Raises:
            UsageError: Settings of another version.
        """
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        values = self.config.values["training"]
        if unknown := sorted(values.keys() - known):
            raise UsageError(
                f"The run was trained by another version of offramp, with settings that this one lacks "
                f"({', '.join(unknown)}), so no smaller network can be trained, or known to be trained, the same way: "
                "give --no-train, and with --runs a folder that holds none."
            )
        if self.config.training.form in FORMER_FORMS:
            values = {**values, "form": "auto"}
        whole = convert(values, TrainConfig, self.run.config)
        quiet = dataclasses.replace(whole, tensorboard=False, wandb=False, mlflow=False)
        return dataclasses.replace(quiet, init=None, threads=None, xray=0, keep_best=False)

    def description(self) -> tuple[str, ...]:
        """How they are trained, in sentences."""
        own, name = self._own_objective, registry.called(self.config.objective.to_json())
        epochs = self.training.epochs
        sentences = [
            f"Each smaller network is the run's, up to its exit, with that exit alone, trained on the same images for "
            f"{epochs} epoch{'s' if epochs > 1 else ''} with the run's settings; what only later stages read is not "
            "computed."
        ]
        if own.damping_neuron == "required":
            neuron = "without" if "damping" in self._recipe.args else "beside"  # its builder may know no other
            sentences.append(
                f"The run's {name} damps an exit for the sake of the others; with one exit plain cross-entropy is "
                f"taken, {neuron} the neuron."
            )
        rule = "" if self.config.rule is None else self.config.rule.name
        if rule.startswith(f"{rules.__name__}.") and not rule.endswith(f":{Standard.__qualname__}"):
            sentences.append(f"The run's rule {rule.rpartition(':')[2]} is for several exits and was left out.")
        if self._init is not None or self.origin.get("weights") == HUB:
            pretrained = "" if self._init is not None else "pretrained "
            sentences.append(f"They start from the {pretrained}weights that the run started from.")
        return tuple(sentences)

    def seconds(self, missing: Iterable[tuple[int, int]]) -> float:
        """About how long training the `missing` ones (exit, seed) takes, from a few steps of the largest.

        Good for a factor of two: what is watched after an epoch and a faster form of training are left aside.
        """
        left = {job: self._left(*job) for job in missing}
        if not left:
            return 0.0
        shape = self.parts.train.image_shape
        counts = {exit: cost(self.blank(exit), shape).exits[0].operations for exit, _ in left}
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
        network, batch = self.blank(exit).to(device).train(), next(self.parts.train.batches(seed=self.seed))
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


def _start(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What `origin.json` says of the weights that a run begins with."""
    return {key: origin.get(key) for key in ("weights", "init")}
