"""What stands in a run's folder, and how to read it back.

config.json          everything that determines the run (and the fields that may change when it is continued)
environment.json     versions, device, threads, git state, command, of every start
input.json           how an image file becomes the network's input, and the names of the classes
split.json           which training images are held out as search and certify
metrics.jsonl        one line an epoch: only what the run determines, the same byte for byte after any interruption
timing.jsonl         clocks and rates
xray.safetensors     what the gradients of some training images did, on request
checkpoints/         the last few states of the training
weights.safetensors  the final weights, plain layout; there when the run is finished
best.safetensors     the weights of the best epoch, on request
records/             logits of whole data sets, made by `offramp evaluate`, as are the following
evaluation.json      the figures of every exit
report.html          the same as a page
plots/               its plots as files
policy.json          thresholds, made by `offramp policy`, or with a certificate by `offramp certify`
xray.html            the page that `offramp xray` makes of xray.safetensors
bench.json           times to each exit and how this machine runs it fastest, made by `offramp bench`
"""

import json
from pathlib import Path
from typing import Any

import torch

from offramp.config import Spec
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet, rebuild
from offramp.storage import load_tensors

FORMAT = 1  # of the folder; a run folder of a newer format is refused


class RunFolder:
    """Paths and contents of one run's folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.input = self.path / "input.json"
        self.split = self.path / "split.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.xray = self.path / "xray.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.safetensors"
        self.best_weights = self.path / "best.safetensors"
        self.records = self.path / "records"
        self.report = self.path / "report.html"
        self.policy = self.path / "policy.json"
        self.bench = self.path / "bench.json"

    def read_config(self) -> dict[str, Any]:
        """The run's configuration as JSON values. A folder that is no run, or of a newer offramp, is refused."""
        if not self.config.is_file():
            raise UsageError(f"{self.path} is not a run: it has no config.json. `offramp train --out DIR` makes one.")
        config = read_json(self.config)
        if not isinstance(config, dict) or not isinstance(config.get("format"), int):
            raise UsageError(f"{self.path} is not a run: its config.json is not one of offramp.")
        if config["format"] > FORMAT:
            raise UsageError(
                f"{self.path} was written by a newer offramp (run format {config['format']}; this one reads up to "
                f"{FORMAT}). Update offramp."
            )
        missing = {"data", "network", "objective", "training"} - config.keys()
        if missing:
            raise OfframpError(f"{self.config} is damaged: it lacks {', '.join(sorted(missing))}.")
        return config

    def read_starts(self) -> list[dict[str, Any]]:
        """What `environment.json` says of every start, the first one first."""
        starts: list[dict[str, Any]] = read_json(self.environment) if self.environment.is_file() else []
        return starts

    def read_metrics(self) -> list[dict[str, Any]]:
        """One dictionary per finished epoch."""
        if not self.metrics.is_file():
            return []
        try:
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except ValueError as error:
            raise OfframpError(f"{self.metrics} is damaged: {error}.") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file; one that holds none is a clear error."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise OfframpError(f"{path} is damaged: {error}.") from error


def load(run: str | Path, into: EarlyExitNet | None = None) -> EarlyExitNet:
    """The trained network of a finished run, in evaluation mode, on the CPU.

    A network that was built by hand has no recipe in the run: pass one of the same make as `into`.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if not folder.weights.is_file():
        raise UsageError(f"{folder.path} has no weights yet: the run is not finished. Start the same command again.")
    if into is None:
        if config["network"] is None:
            raise UsageError(f"The network of {folder.path} was built by hand; pass one of the same make as `into`.")
        into = rebuild(Spec.from_json(config["network"]))
    tensors, _ = load_tensors(folder.weights)
    load_weights(into, tensors, folder.weights)
    return into.eval()


def load_weights(network: EarlyExitNet, tensors: dict[str, Any], source: Path) -> None:
    """Put `tensors` into `network`; every name and shape must fit, or the error shows what does not."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name} is {list(tensors[name].shape)} there, {list(own[name].shape)} here"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    problems = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
    problems += [f"{len(unknown)} unknown, such as {unknown[0]}"] if unknown else []
    problems += [f"{len(shapes)} of another shape: {sorted(shapes)[0]}"] if shapes else []
    if problems:
        raise UsageError(f"{source} does not fit this network: {'; '.join(problems)}.")
    network.load_state_dict(tensors)


def start_from(network: EarlyExitNet, path: str | Path) -> None:
    """Take over the weights of a safetensors file or a finished run.

    Weights of a network without the damping neuron fit one that has it: the neuron keeps its fresh weights.
    """
    source = Path(path).expanduser()
    foreign = not source.is_dir()
    if source.is_dir():
        folder = RunFolder(source)
        folder.read_config()
        source = folder.weights
    if source.suffix != ".safetensors":
        raise UsageError(f"{source} is no safetensors file; `offramp import` converts checkpoints of the originals.")
    tensors, _ = load_tensors(source, foreign=foreign)
    if network.damping:
        for name, own in network.state_dict().items():
            there = tensors.get(name)
            if (
                there is not None
                and own.shape[:1] == (network.num_outputs,)
                and there.shape[:1] == (network.num_classes,)
            ):
                tensors[name] = torch.cat([there, own[-1:].to(there)])
    load_weights(network, tensors, source)
