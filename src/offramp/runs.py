"""What stands in a run's folder, and how to read it back.

config.json          everything that determines the run (and the fields that may change when it is continued)
environment.json     versions, device, threads, git state, command, of every start
input.json           how an image file becomes the network's input, and the names of the classes
origin.json          where the weights that it began with come from, and their licence, where that is known
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
verdict.json         early exits against smaller networks, made by `offramp verdict`
verdict.html         the same as a page
verdict/             the runs of these smaller networks
export/              the network for other runtimes, made by `offramp export`
manifest.json        what `offramp reproduce` keeps of a run of a study: configuration, figures, times
"""

import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp import trust
from offramp.checks import Maybe, fault
from offramp.config import DataConfig, Spec, TrainConfig, determining, with_defaults
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet, last_linear, rebuild
from offramp.storage import load_pickled, load_tensors, parse_json

TORCH_FILES = (".pth", ".pt", ".bin")
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Classifiers of torchvision that may have further outputs in training, which are left out here, and their names."""
_SPEC = {"name": str, "args": dict}
_CONFIG = {  # what is read of the files, as `checks.fault` takes it; what an argument may be, its user checks
    "data": ({"source": _SPEC},),
    "network": (_SPEC,),
    "objective": {"name": Maybe(str), "args": Maybe(dict)},
    "rule": Maybe(_SPEC),
    "training": dict,
    "images": Maybe({str: (str,)}),
}
_STARTS = [{"started": Maybe(str), "threads": Maybe(int), "device": Maybe(str), "git": Maybe({"commit": str})}]
_NUMBERS = Maybe([(float,)])
_LINE = {
    "epoch": int,
    **dict.fromkeys(("train_top1", "search_top1"), _NUMBERS),
    "stats": Maybe({str: ([(float,)],)}),
    "loss": Maybe(float),
}
ORIGIN = {
    **dict.fromkeys(("model", "weights", "licence"), Maybe(str)),
    "init": Maybe({"file": Maybe(str), "sha256": Maybe(str)}),
    "ancestors": Maybe([{"through": str}]),
}
SPLIT = {
    **dict.fromkeys(("training_images", "limit", "holdout", "split_seed"), Maybe(int)),
    "fingerprints": Maybe({str: (str,)}),
}
FORMAT = 2  # of the folder; a run folder of a newer format is refused
_BOUND = 2  # the first format whose checkpoints and weights say which run they are of
OWNER = "run"  # under which they say it: `RunFolder.identity`


class RunFolder:
    """Paths and contents of one run's folder.

    Args:
        path: The folder.
        allow_code: Packages whose code its `config.json` may name: see `offramp.trust`.
    """

    def __init__(self, path: str | Path, allow_code: Sequence[str] = ()) -> None:
        self.path = _at_home(path)
        self.allow_code = trust.packages(allow_code, "allow_code")
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.input = self.path / "input.json"
        self.origin = self.path / "origin.json"
        self.split = self.path / "split.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.xray = self.path / "xray.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.safetensors"
        self.best_weights = self.path / "best.safetensors"
        self.records = self.path / "records"
        self.evaluation = self.path / "evaluation.json"
        self.report = self.path / "report.html"
        self.plots = self.path / "plots"
        self.policy = self.path / "policy.json"
        self.xray_page = self.path / "xray.html"
        self.bench = self.path / "bench.json"
        self.verdict = self.path / "verdict.json"
        self.verdict_page = self.path / "verdict.html"
        self.verdict_runs = self.path / "verdict"
        self.export = self.path / "export"
        self.manifest = self.path / "manifest.json"

    def record(self, part: str) -> Path:
        """The file with the logits of a part of the data: `train`, `search`, `certify` or `test`."""
        return self.records / f"{part}.safetensors"

    def command(self, name: str) -> str:
        """`offramp NAME` on this folder, as a shell takes it."""
        return shlex.join(["offramp", name, str(self.path)])

    def read_config(self) -> dict[str, Any]:
        """The run's configuration as JSON values. A folder that is no run, or of a newer offramp, is refused.

        Settings that are newer than the run have their defaults.
        """
        try:
            is_there = self.config.is_file()
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise UsageError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if not is_there:
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
        _check_shape(config, _CONFIG, self.config)
        for name, config_class in (("data", DataConfig), ("training", TrainConfig)):
            if isinstance(config[name], dict):
                config[name] = with_defaults(config_class, config[name])
        # Of training, older versions had settings that are gone; nothing is made of what stands there.
        data = config["data"] if isinstance(config["data"], dict) else {}
        if unknown := data.keys() - {one.name for one in fields(DataConfig)}:
            raise UsageError(
                f"{self.path} was written by a newer offramp: its config.json has {', '.join(sorted(unknown))} among "
                "the data's settings. Update offramp."
            )
        return config

    def identity(self) -> str:
        """SHA-256 of all that determines the run, as `config.json` has it: its weights and checkpoints carry it."""
        self.read_config()
        text = json.dumps(determining(read_json(self.config)), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def owns(self, identity: Any) -> bool:
        """Whether a file of weights or a checkpoint that carries `identity` is of this run.

        One that carries none (None) is, where the folder is of an older offramp, which wrote none.
        """
        if identity is None:
            return bool(self.read_config()["format"] < _BOUND)
        return bool(identity == self.identity())

    def naming(self, config: Mapping[str, Any]) -> AbstractContextManager[None]:
        """While names that stand in its configuration are built: what they may name is `trust`'s to say."""
        return trust.opened(self.path, config, self.allow_code)

    def read_starts(self) -> list[dict[str, Any]]:
        """What `environment.json` says of every start, the first one first."""
        starts: list[dict[str, Any]] = read_json(self.environment, _STARTS) if self.environment.is_file() else []
        return starts

    def read_metrics(self) -> list[dict[str, Any]]:
        """One dictionary per finished epoch."""
        if not self.metrics.is_file():
            return []
        try:
            lines = [parse_json(line) for line in self.metrics.read_text().splitlines()]
        except ValueError as error:
            raise OfframpError(f"{self.metrics} is damaged: {error}.") from error
        _check_shape(lines, [_LINE], self.metrics)
        lengths: dict[str, int] = {}
        for line in lines:
            for name, values in {**line, **(line.get("stats") or {})}.items():
                if isinstance(values, list) and lengths.setdefault(name, len(values)) != len(values):
                    raise OfframpError(f"{self.metrics} is damaged: its lines are of different numbers of {name}.")
        return lines


def _at_home(path: str | Path) -> Path:
    """A path, with the home folder for a tilde. A name such as 7 is a number where a `Spec` was read."""
    try:
        return Path(str(path)).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} is not there: nobody of that name has a home folder here.") from error


def read_json(path: Path, shape: Any = None) -> Any:
    """The JSON value in a file; one that holds none, or none of a shape (`checks.fault`), is a clear error."""
    try:
        value = parse_json(path.read_text())
    except OSError as error:
        raise OfframpError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise OfframpError(f"{path} is damaged: {error}.") from error
    _check_shape(value, shape, path)
    return value


def _check_shape(value: Any, shape: Any, path: Path) -> None:
    found = None if shape is None else fault(value, shape)
    if found is not None:
        raise OfframpError(f"{path} is damaged: {found}.")


def load(run: str | Path, into: EarlyExitNet | None = None, *, allow_code: Sequence[str] = ()) -> EarlyExitNet:
    """The trained network of a finished run, in evaluation mode, on the CPU.

    Args:
        run: The run's folder. It may be a stranger's: of the code that it names only offramp's own networks are built.
        into: A network of the same make, for one that was built by hand and so has no recipe in the run.
        allow_code: Packages whose code the run may name and have called, such as `("mine",)`. Not needed for a run that
            was made here.

    Raises:
        UsageError: No finished run, or one that names code that is not allowed.
        OfframpError: A damaged file.
    """
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    if not folder.weights.is_file():
        raise UsageError(f"{folder.path} has no weights yet: the run is not finished. Start the same command again.")
    if into is None:
        if config["network"] is None:
            raise UsageError(f"The network of {folder.path} was built by hand; pass one of the same make as `into`.")
        with folder.naming(config):
            into = rebuild(Spec.from_json(config["network"]))
    tensors, metadata = load_tensors(folder.weights)
    _check_owner(folder.weights, metadata)
    load_weights(into, tensors, folder.weights)
    if folder.origin.is_file():
        into.origin = read_json(folder.origin, ORIGIN)
    return into.eval()


def _check_owner(file: Path, metadata: Mapping[str, str]) -> None:
    """Refuse a run's weights, final or best, that another run made; a file that stands elsewhere is of no run."""
    folder = RunFolder(file.parent)
    if file not in (folder.weights, folder.best_weights) or not folder.config.is_file():
        return
    if not folder.owns(metadata.get(OWNER)):
        raise UsageError(
            f"{file} is of another run than the config.json beside it. Put back the file that this run wrote, or "
            "remove this one and train again."
        )


def load_weights(network: EarlyExitNet, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put `tensors` into `network`; every name and shape must fit, or the error shows what does not."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name} is {list(tensors[name].shape)} there, {list(own[name].shape)} here"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    problems = [f"{len(missing)} missing, such as {_shown(own, missing)}"] if missing else []
    problems += [f"{len(unknown)} unknown, such as {_shown(tensors, unknown)}"] if unknown else []
    problems += [f"{len(shapes)} of another shape: {sorted(shapes)[0]}"] if shapes else []
    if problems:
        raise UsageError(f"{source} does not fit this network: {'; '.join(problems)}.")
    network.load_state_dict(dict(tensors))


def start_from(network: EarlyExitNet, path: str | Path) -> str | None:
    """Take over the weights of a file or a finished run.

    Weights of a network without the damping neuron fit one that has it: the neuron keeps its fresh weights.

    A file may also hold the weights of the model that exits were attached to, under that model's names: those of the
    network without `stages.<k>.`, and without `exits.<K-1>.` for the last exit, which ends as the model did. The other
    exits keep their fresh weights, and so does the last layer where it tells other classes apart. Auxiliary heads of
    torchvision's GoogLeNet and Inception are left out. A first convolution for colours is summed for grey images.

    Args:
        network: What gets the weights.
        path: A safetensors file, a `.pth`, `.pt` or `.bin` file of tensors (also under `state_dict` or `model`, also
            with `module.` before every name), or a run's folder. Nothing in a file is run.

    Returns:
        What was taken over and what starts fresh, for a person; None where nothing starts fresh.

    Raises:
        UsageError: Weights of another network, with what is missing, unknown or of another shape.
        OfframpError: A damaged file.
    """
    source = weights_of(path)
    tensors = _tensors_of(source, is_foreign=source == Path(path).expanduser())
    said = None
    if _has_original_names(network, tensors):
        tensors, said = _under_own_names(network, tensors, source)
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
    return said


def weights_of(path: str | Path) -> Path:
    """The file with the weights: `path` itself, or that of a run's folder. Refused where neither is there."""
    source = _at_home(path)
    if not source.exists():
        raise UsageError(f"There is no file or run {source}.")
    if not source.is_dir():
        return source
    folder = RunFolder(source)
    folder.read_config()
    return folder.weights


def _tensors_of(source: Path, *, is_foreign: bool) -> dict[str, Tensor]:
    if source.suffix == ".safetensors":
        tensors, metadata = load_tensors(source, foreign=is_foreign)
        _check_owner(source, metadata)
        return tensors
    if source.suffix not in TORCH_FILES:
        raise UsageError(
            f"{source} is no safetensors, {', '.join(TORCH_FILES)} file; `offramp import` converts checkpoints of the "
            "originals."
        )
    held = load_pickled(source, "Of a whole model, save its `state_dict()` alone.")
    for key in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    names = list(held) if isinstance(held, Mapping) else []
    if not names or not all(isinstance(held[name], Tensor) for name in names):
        found = f"the entries {', '.join(map(str, names[:5]))}" if names else f"a {type(held).__name__}"
        raise UsageError(f"{source} holds no dictionary of tensors by name; found {found}.")
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): held[name] for name in names}


def _original_names(network: EarlyExitNet) -> dict[str, str]:
    """Own names of the trunk and the last exit, with the names in the model that exits were attached to."""
    last = f"exits.{network.num_exits - 1}."
    names = {}
    for name in network.state_dict():
        if name.startswith("stages."):
            names[name] = name.split(".", 2)[2]
        elif name.startswith(last):
            names[name] = name.removeprefix(last)
    return names


def _has_original_names(network: EarlyExitNet, tensors: Mapping[str, Tensor]) -> bool:
    there = sum(name in tensors for name in _original_names(network).values())
    return there > sum(name in tensors for name in network.state_dict())


def _under_own_names(
    network: EarlyExitNet, tensors: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], str | None]:
    """The weights of the model that exits were attached to, as weights of the network, and what is to be said of it."""
    own, originals = network.state_dict(), _original_names(network)
    found = {here: tensors[there] for here, there in originals.items() if there in tensors}
    left = {name: tensor for name, tensor in tensors.items() if name not in originals.values()}
    heads = tuple(itertools.chain.from_iterable(AUXILIARY.values()))
    auxiliary = [name for name in left if name.startswith(heads)]
    for name in auxiliary:
        del left[name]
    head = [name for name in originals if name.startswith("exits.")]
    classifier = _last_layer(network)
    fresh = {name for name in own if name not in originals}
    said = "trunk and last exit; the other exits start fresh" if fresh else None
    if head and not any(name in found for name in classifier or head):  # the last exit is none of the model's
        fresh |= set(head) - found.keys()
        said = f"trunk; the exits start fresh, without {_shown(left, sorted(left)) if left else 'a head'} of the file"
        left = {}
    elif classifier and all(_tells_others_apart(network, own[name], found.get(name)) for name in classifier):
        fresh |= set(classifier)
        there, here = len(found[classifier[0]]), network.num_classes
        said = f"trunk and last exit; its last layer, for {there} classes there and {here} here, starts fresh"
        said += ", as do the other exits" if network.num_exits > 1 else ""
    said = f"{said or 'trunk and last exit'}; auxiliary heads of the file are left out" if auxiliary else said
    first = next((name for name, tensor in found.items() if tensor.ndim == 4), None)
    if first is not None and network.image_shape is not None and network.image_shape[0] == 1:
        grey = for_grey(found[first])
        if found[first].shape[1] == 3 and grey.shape == own[first].shape:
            found[first] = grey
            said = f"{said or 'trunk and last exit'}; its first convolution, for colours, is summed for grey images"
    fresh |= {name for name in originals if name not in found and name.endswith("num_batches_tracked")}  # of old files
    return {**found, **{name: own[name] for name in fresh}, **left}, said and f"From {source.name}: {said}."


def for_grey(weight: Tensor) -> Tensor:
    """Weights `[O, C, H, W]` of a first convolution for images of one channel: as if it stood in all C channels."""
    return weight.sum(1, keepdim=True)


def _last_layer(network: EarlyExitNet) -> list[str]:
    """Own names of the parameters that make the last exit's outputs."""
    head = network.exits[-1]
    linear = last_linear(head)
    made_by = {id(parameter) for parameter in (head if linear is None else linear).parameters()}
    named = head.named_parameters(prefix=f"exits.{network.num_exits - 1}")
    return [name for name, p in named if id(p) in made_by and p.shape[:1] == (network.num_outputs,)]


def _tells_others_apart(network: EarlyExitNet, own: Tensor, there: Tensor | None) -> bool:
    """Whether a tensor of the last layer is that of another number of classes."""
    if there is None or there.shape[1:] != own.shape[1:]:
        return False
    return there.shape[:1] not in ((network.num_classes,), (network.num_outputs,))


def _shown(tensors: Mapping[str, Tensor], names: Sequence[str]) -> str:
    return f"{names[0]} {list(tensors[names[0]].shape)}"
