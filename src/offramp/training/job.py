"""What is to be trained, all of it: does it fit together, and how is it described."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import offramp
from offramp import objectives, processes, registry
from offramp.config import TrainConfig, to_json
from offramp.data import HeldOut, Split
from offramp.devices import describe_device
from offramp.errors import UsageError
from offramp.files import FORMAT, Ancestor, RunFolder, weights_of
from offramp.network import Carry, EarlyExitNet
from offramp.objectives import Objective
from offramp.rules import TrainingRule
from offramp.training.provenance import ancestor
from offramp.training.trunk import check_trunk


@dataclass(frozen=True)
class Job:
    """The arguments of `fit`, without the folder."""

    network: EarlyExitNet
    objective: Objective
    train: Split
    val: HeldOut
    config: TrainConfig
    rule: TrainingRule

    def check(self) -> None:
        """Refuse what does not fit together, before anything is written."""
        network, train = self.network, self.train
        objectives.check_fits(self.objective, damping=network.damping)
        self.rule.check(network)
        check_trunk(network, self.config)
        self._check_epochs()
        if network.num_classes != train.num_classes:
            raise UsageError(
                f"The network tells {network.num_classes} classes apart, {train.name} has {train.num_classes}; build "
                f"it with num_classes={train.num_classes}."
            )
        if network.image_shape is not None and tuple(network.image_shape) != tuple(train.image_shape):
            raise UsageError(
                f"The network was made for images of shape {tuple(network.image_shape)}, {train.name} has "
                f"{tuple(train.image_shape)} (channels, height, width)."
            )
        if min(train.batch_size, len(train)) < processes.world_size():
            raise UsageError(
                f"{processes.world_size()} processes cannot share batches of {train.batch_size} of {len(train)} "
                "images; use fewer processes or larger batches."
            )
        if self.config.keep_best and not self.val:
            raise UsageError("keep-best picks the best epoch on held-out images, and none are held out; set holdout.")
        self._try_out()

    def _check_epochs(self) -> None:
        epochs, together = self.config.epochs, self.rule.epochs_together(self.network)
        if epochs % together:
            less, more = (f"{multiple * together}" for multiple in (epochs // together, epochs // together + 1))
            raise UsageError(
                f"{type(self.rule).__name__} takes {together} passes over the images at a time for "
                f"{self.network.num_exits} exits, so epochs cannot be {epochs}; take "
                f"{more if epochs < together else f'{less} or {more}'}."
            )

    def _try_out(self) -> None:
        """One blank image through network and objective: their sizes fit, and the objective's settings the exits."""
        network = self.network
        parameter = next(network.parameters())
        image = torch.zeros(1, *self.train.image_shape, dtype=parameter.dtype, device=parameter.device)
        mode = network.training
        with torch.no_grad():
            logits_K1C = _tried(network.eval(), image)
            network.train(mode)
            self._try_objective(logits_K1C)

    def _try_objective(self, logits_K1C: Tensor) -> None:
        """The shares and statistics of K + 1 images that are the same: no other shape can be taken for `[K, B]`."""
        K = len(logits_K1C)
        targets_B = torch.zeros(K + 1, dtype=torch.long, device=logits_K1C.device)
        terms = self.objective.terms(logits_K1C.expand(-1, K + 1, -1), targets_B)
        for what, found_KB in (("shares of the loss", terms.loss_KB), *terms.stats_KB.items()):
            if tuple(found_KB.shape) != (K, K + 1):
                raise UsageError(
                    f"{type(self.objective).__name__} gives {what} of shape {tuple(found_KB.shape)} for {K} exits and "
                    f"{K + 1} images, not {(K, K + 1)}: its terms are of each exit and image, no sums or means."
                )

    def describe(self) -> dict[str, Any]:
        """What `config.json` holds: all that determines the run."""
        network, train, val, rule = self.network, self.train, self.val, self.rule
        return {
            "format": FORMAT,
            "offramp": offramp.__version__,
            "data": None if train.config is None else to_json(train.config),
            "images": {"train": train.fingerprint(), "search": val.search.fingerprint() if val else None},
            "network": None if network.spec is None else network.spec.to_json(),
            "objective": objectives.describe(self.objective),
            "rule": {"name": f"{type(rule).__module__}:{type(rule).__qualname__}", "args": rule.settings()},
            "training": to_json(self.config),
        }

    def origin(self) -> dict[str, Any]:
        """What `origin.json` holds: what the network says of its weights, the file that they were read from, ancestors.

        Of the last, those that are runs whose folders are there: see `training.provenance`.
        """
        origin = self._of_weights()
        origin.pop("run", None)
        if self.config.init is not None:
            file = weights_of(self.config.init)
            name = file.name if file == Path(self.config.init).expanduser() else f"{file.parent.name}/{file.name}"
            with open(file, "rb") as content:
                origin["init"] = {"file": name, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
        known = [one.to_json() for through, path in self.begun_with().items() for one in _ancestors(through, path)]
        known += origin.get("ancestors", [])  # of a network that was read from a run
        return origin | ({"ancestors": known} if known else {})

    def begun_with(self) -> dict[str, Any]:
        """Files and folders that the run reads when it begins; None where it reads none."""
        return {
            "init": self.config.init,
            "teacher": self.rule.settings().get("teacher"),
            "network": (self.network.origin or {}).get("run"),  # where `collaborating` read it
        }

    def _of_weights(self) -> dict[str, Any]:
        """What the network says of its weights; nothing of those from a hub whose place a file takes."""
        origin = dict(self.network.origin or {})
        replaced = self.config.init is not None and origin.get("weights") == "hub"
        return origin | ({"weights": None, "licence": None} if replaced else {})

    def introduction(self, device: torch.device) -> str:
        """One line for a person."""
        train, network, threads = self.train, self.network, torch.get_num_threads()
        parts = ", ".join(f"{len(part):,} for {part.name.rpartition('/')[2]}" for part in (train, *self.val.splits()))
        size = " x ".join(str(side) for side in train.image_shape)
        return (
            f"{registry.called(objectives.describe(self.objective))} on {train.name.partition('/')[0]} ({parts}; "
            f"{size}), {network.num_exits} exits, {sum(p.numel() for p in network.parameters()):,} parameters"
            f"{self._of_the_trunk()}, {describe_device(device)}, {threads} thread{'' if threads == 1 else 's'}"
        )

    def _of_the_trunk(self) -> str:
        """Where its weights come from and under which licence, and how it is trained."""
        origin = self._of_weights()
        known = [origin[key] for key in ("model", "licence") if origin.get(key)]
        trunk = f" (trunk: {', '.join(known)})" if known else ""
        if self.config.freeze_trunk:
            return f"{trunk}, of which {sum(p.numel() for p in self.network.exits.parameters()):,} train"
        return trunk if self.config.trunk_lr == 1 else f"{trunk}, trunk at {self.config.trunk_lr:g} of the rate"


def _tried(network: EarlyExitNet, image: Tensor) -> Tensor:
    """Logits `[K, 1, C]` of one image, exit by exit."""
    carry: Carry = (image,)
    logits, wanted = [], (1, network.num_outputs)
    for k, reads in enumerate(network.reads):
        carry = network.run_stage(k, carry)
        if not -len(carry) <= reads < len(carry):
            raise UsageError(f"Exit {k + 1} reads tensor {reads} of the carry, and stage {k + 1} gives {len(carry)}.")
        logits.append(network.run_exit(k, carry))
        if tuple(logits[k].shape) != wanted:
            neuron = " and the damping neuron" if network.damping else ""
            raise UsageError(
                f"Exit {k + 1} gives logits of the shape {tuple(logits[k].shape)} for one image, not {wanted} "
                f"(images, {network.num_classes} classes{neuron})."
            )
    return torch.stack(logits)


def _ancestors(through: str, path: Any) -> list[Ancestor]:
    """The run at a path, or around a file of weights, and its ancestors; none where that is no run."""
    if path is None:
        return []
    place = Path(str(path)).expanduser()
    run = place if place.is_dir() else place.parent
    return ancestor(through, run) if RunFolder(run).config.is_file() else []
