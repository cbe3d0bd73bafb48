"""What a run is: data, network, objective, training; frozen, torch-free. The command line is made from these classes.

A method, a backbone or a data set is named by a `Spec`: a registered name or `package.module:Name`, with keyword
arguments. The same class stands on the command line, in a run's `config.json` and on a built network.
"""

import ast
import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from offramp import registry, trust
from offramp.checks import LARGEST, MOST, SIZE, check_fields, did_you_mean, whole
from offramp.errors import UsageError

PAPER_EPOCHS = 300  # CIFAR; ImageNet: 100 (paper, section 4)
_MOST_WORKERS = 1024  # processes or threads
MOST_WATCHED = 2048  # images; what is written of them stands in every checkpoint, 39 MB after the paper's run


@dataclass(frozen=True)
class Spec:
    """What to build: a registered name or `package.module:Name`, and keyword arguments (JSON values only)."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Spec":
        """Read `NAME key=value key=value`; values are Python literals, anything else is a string."""
        if not words:
            raise UsageError("A name is missing: NAME [KEY=VALUE ...].")
        name, *pairs = words
        args: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not key.isidentifier():
                raise UsageError(f"{pair!r} after {name!r} is not of the form key=value.")
            if key in args:
                raise UsageError(f"{key} is given twice after {name!r}.")
            args[key] = _literal(value)
        return cls(name, args)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Spec":
        """The inverse of `to_json`. Of what stands in a file that may be damaged: anything else is refused."""
        if not (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
            raise UsageError(f"{str(value)[:80]!r} is no name with arguments, as a run's config.json has them.")
        args = value.get("args", {})
        if not (isinstance(args, Mapping) and all(isinstance(key, str) for key in args)):
            raise UsageError(f"{str(args)[:80]!r} are no arguments of {value['name']!r}.")
        return cls(value["name"], dict(args))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, equal for equal specs (tuples become lists)."""
        return {"name": self.name, "args": _jsonable(dict(self.args))}

    def words(self) -> list[str]:
        """The inverse of `parse`."""
        return [self.name, *(f"{key}={value!r}" for key, value in self.args.items())]

    def __str__(self) -> str:
        return " ".join(self.words())


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):  # TypeError: a literal that is no value, such as {[]: 1}
        return text


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UsageError(f"{value!r} cannot be written to a run's configuration; use numbers, strings, lists.")


def resolve(name: str, names: Mapping[str, Any], kind: str) -> Any:
    """The object behind a registered name or `package.module:Name`, if it may be named (see `trust`).

    `kind` is the word used in errors.
    """
    if name in names:
        return names[name]
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or module_name.startswith("."):
        raise UsageError(f"Unknown {kind} {name!r}.{did_you_mean(name, sorted(names))} Your own: package.module:Name.")
    trust.check(name, kind)
    try:
        module = _imported(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's module is a bug there and keeps its traceback.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UsageError(f"{kind} {name!r}: there is no module {module_name!r} on the Python path.") from None
    if not hasattr(module, attribute):
        raise UsageError(f"{kind} {name!r}: module {module_name!r} has no {attribute!r}.")
    return getattr(module, attribute)


def _imported(name: str) -> ModuleType:
    """A module that the user named or allowed; what is found nowhere else is looked for in the folder one works in."""
    package = name.partition(".")[0]
    with contextlib.suppress(FileNotFoundError):  # the folder is gone
        here = os.getcwd()
        known = package in sys.modules or importlib.util.find_spec(package) is not None
        if not known and importlib.machinery.PathFinder.find_spec(package, [here]) is not None:
            sys.path.append(here)
    return importlib.import_module(name)


def build(spec: Spec, names: Mapping[str, Any], kind: str, wanted: type = object, /, **defaults: Any) -> Any:
    """Build what `spec` names. Its arguments win over `defaults`; a default the builder does not take is dropped."""
    builder = resolve(spec.name, names, kind)
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # not callable, or written in C
        raise UsageError(
            f"{kind} {spec.name!r} is of type {type(builder).__name__}; name a class or a function."
        ) from None
    if inspect.isabstract(builder):
        raise UsageError(
            f"{kind} {spec.name!r} is abstract: it lacks {', '.join(sorted(builder.__abstractmethods__))}."
        )
    known = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in spec.args:
        if key not in known and not takes_any:
            hint = did_you_mean(key, known) if known else " It takes none."
            raise UsageError(f"{kind} {spec.name!r} has no argument {key!r}.{hint}")
    arguments = {key: value for key, value in defaults.items() if key in known or takes_any} | dict(spec.args)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UsageError(f"{kind} {spec.name!r}: {error}.") from None
    with trust.calling(spec.name, kind):
        built = builder(**arguments)
    if not isinstance(built, wanted):
        right = f"{wanted.__module__}.{wanted.__qualname__}"
        raise UsageError(f"{kind} {spec.name!r} gives a {type(built).__name__}, not an {right}.")
    return built


_SPEC_FLAG = PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME [KEY=VALUE ...]",
    instance_from_str=Spec.parse,
    is_instance=lambda value: isinstance(value, Spec),
    str_from_instance=Spec.words,
)
SpecFlag = Annotated[Spec, _SPEC_FLAG]


def unset(metavar: str) -> Any:
    """For an option that is None unless it is given: its help says what it takes, without `{None}` and a default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def _names(known: Iterable[str], more: str = "") -> str:
    """The help of an option that takes a name."""
    return f"{', '.join(known)}, or package.module:Name{more and '; '}{more}."


_NETWORKS = _names(
    [
        "auto (fits the data)",
        "a preset such as msdnet7-cifar100",
        *registry.BACKBONES,
        "timm/NAME or torchvision/NAME (with exits attached)",
    ]
)

FormName = Literal["auto", "plain", "compiled"]
"""How a network is run in training, as the user names it."""

# Fields marked so may differ when a run is continued: they change how it runs, never what it computes.
FREE: Mapping[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, in which parts."""

    source: Annotated[SpecFlag, tyro.conf.arg(name="data", help=_names(registry.DATA, "arguments follow"))] = field(
        default_factory=lambda: Spec("digits")
    )
    root: Annotated[str | None, unset("DIR")] = field(default=None, metadata=FREE)
    """Folder that holds the data set's files (default: $OFFRAMP_DATA, else ~/.cache/offramp)."""
    batch_size: Annotated[int, whole(1)] = 64
    """Images per optimiser step, over all processes together."""
    holdout: Annotated[int | None, whole(0), unset("INT")] = None
    """Training images held out, half for `search`, half for `certify`. Default: CIFAR 5000, ImageNet 50000; 0: none."""
    workers: Annotated[int, whole(0, _MOST_WORKERS)] = field(default=0, metadata=FREE)
    """Worker processes that decode images (data sets that do not fit in memory)."""
    skip_unreadable: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out image files that cannot be used; which, the run's split.json says."""

    def __post_init__(self) -> None:
        check_fields(self, hyphens=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The defaults are the paper's for CIFAR-100 (section 4; protocols of the originals).

    Other data have other recipes (ImageNet: 100 epochs, batches of 256): `offramp reproduce` trains by them, and its
    page shows the command of each run.
    """

    epochs: Annotated[int, whole(1, MOST)] = PAPER_EPOCHS
    """Passes over the training part."""
    seed: Annotated[int, whole(0, 2**63 - 1)] = 0
    """Seed of initialisation, order of images and augmentation."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum; adamw: decoupled weight decay."""
    lr: Annotated[float, SIZE] = 0.1
    """Learning rate at the start (after warm-up)."""
    momentum: Annotated[float, SIZE] = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov's form of the momentum (sgd). The paper and the originals have none; confidence-gated training does."""
    weight_decay: Annotated[float, SIZE] = 1e-4
    """Weight decay on every parameter."""
    schedule: Literal["cosine", "multistep"] = "cosine"
    """cosine: per iteration, to 0; multistep: times 0.1 at each milestone."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of all epochs after which multistep divides the rate by ten."""
    warmup_epochs: Annotated[float, SIZE] = 0.0
    """Epochs of linear warm-up from 0."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast, with float32 master weights."""
    channels_last: bool = False
    """Memory layout of images and weights."""
    form: FormName = "auto"
    """How the network is run in training. plain: module by module;
    compiled: by torch.compile, which takes minutes at the start and on a CPU a C++ compiler;
    auto: compiled on a CPU where the run is long enough to earn that back."""
    deterministic: bool = True
    """On a GPU: deterministic kernels where there are any; else the fastest, found by trying."""
    device: str = "auto"
    """auto (a CUDA GPU where there is one), cpu, cuda, cuda:N."""
    threads: Annotated[int | None, whole(1, _MOST_WORKERS), unset("INT")] = None
    """CPU threads of torch. Bit-exact resumption needs the same number."""
    init: Annotated[str | None, unset("WEIGHTS")] = None
    """Weights to start from: a run's folder, or a file (safetensors, pth, pt, bin);
    it may be of the network, or of the model that exits were attached to."""
    freeze_trunk: bool = False
    """Train the exits alone: the stages keep their weights and statistics, and stay in evaluation mode."""
    trunk_lr: Annotated[float, SIZE] = 1.0
    """Factor on the learning rate for the stages: 0.1 to fine-tune a trained trunk."""
    augment: bool = True
    """Crop and mirror training images at random, where the data set does so; else they get the test transforms."""
    keep_features: Literal["auto", "yes", "no"] = "auto"
    """With a frozen trunk and without augmentation, compute what the exits read once and keep it.
    auto: where it fits into 2 GiB of memory; yes: otherwise in a file in the run's folder, or say why not."""
    save_every_steps: Annotated[int | None, whole(1), unset("INT")] = field(default=None, metadata=FREE)
    """Also save a checkpoint every so many steps."""
    save_every_minutes: Annotated[float, SIZE] = field(default=5.0, metadata=FREE)
    """Save a checkpoint when the last is older than this; one is always saved at the end of an epoch."""
    keep_checkpoints: Annotated[int, whole(1)] = field(default=2, metadata=FREE)
    """Checkpoints kept besides the best."""
    keep_best: bool = field(default=False, metadata=FREE)
    """Keep the weights of the epoch with the best mean accuracy on `search`."""
    tensorboard: bool = field(default=False, metadata=FREE)
    """Write TensorBoard files (extra `tensorboard`) into the run's folder."""
    wandb: bool = field(default=False, metadata=FREE)
    """Log to Weights & Biases (extra `wandb`), project offramp; WANDB_MODE=offline keeps it on this machine."""
    mlflow: bool = field(default=False, metadata=FREE)
    """Log to MLflow (extra `mlflow`), experiment offramp, where MLFLOW_TRACKING_URI says."""
    xray: Annotated[int, whole(0, MOST_WATCHED)] = field(default=0, metadata=FREE)
    """Training images whose gradients are written down, for `offramp xray`: 256 show a lot; at most 2048."""

    def __post_init__(self) -> None:
        check_fields(self, hyphens=True)
        if self.lr * self.trunk_lr > LARGEST:
            raise UsageError(f"lr times trunk-lr must be at most {LARGEST:.3g}, not {self.lr * self.trunk_lr:g}.")
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"warmup-epochs ({self.warmup_epochs}) is longer than the run ({self.epochs} epochs).")
        if not all(0 < share < 1 for share in self.milestones):
            raise UsageError(f"milestones are shares of the epochs, between 0 and 1; found {self.milestones}.")
        for name, choice, user in (
            ("momentum", "optimizer", "sgd"),
            ("nesterov", "optimizer", "sgd"),
            ("milestones", "schedule", "multistep"),
        ):
            if getattr(self, choice) != user and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UsageError(f"{name} is for {choice} {user}; {getattr(self, choice)} has no use for it.")
        if self.nesterov and self.momentum == 0:
            raise UsageError("nesterov is a form of momentum, and momentum is 0; leave one of them out.")
        self._check_trunk()

    def _check_trunk(self) -> None:
        if self.trunk_lr == 0:
            raise UsageError("trunk-lr must be above 0; to leave the trunk as it is, use freeze-trunk.")
        if self.freeze_trunk and self.trunk_lr != 1:
            raise UsageError(f"trunk-lr={self.trunk_lr} has no use with freeze-trunk: a frozen trunk is not trained.")
        if self.keep_features == "yes" and not self.freeze_trunk:
            raise UsageError("keep-features yes is for a frozen trunk, whose features do not change; add freeze-trunk.")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines a trained network."""

    data: DataConfig = field(default_factory=DataConfig)
    objective: Annotated[SpecFlag, tyro.conf.arg(help=_names(registry.OBJECTIVES))] = field(
        default_factory=lambda: Spec("cross-entropy")
    )
    network: Annotated[SpecFlag, tyro.conf.arg(help=_NETWORKS, aliases=("--backbone",))] = field(
        default_factory=lambda: Spec("auto")
    )
    rule: Annotated[SpecFlag, tyro.conf.arg(help=f"What happens to a batch: {_names(registry.RULES)}")] = field(
        default_factory=lambda: Spec("standard")
    )
    training: TrainConfig = field(default_factory=TrainConfig)


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values."""
    if isinstance(config, Spec):
        return config.to_json()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return _jsonable(config)


def with_defaults(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a configuration that an older offramp wrote: a field it did not have counts as its default."""
    return {**to_json(config_class()), **values}


def free_fields(config_class: type) -> frozenset[str]:
    """Names of the fields that may differ when a run is continued."""
    return frozenset(f.name for f in dataclasses.fields(config_class) if f.metadata.get("free"))


def determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a described configuration that determines the result, as JSON gives it back: tuples are lists."""
    fixed = {key: value for key, value in config.items() if key not in ("format", "offramp")}
    for key, free in (("data", free_fields(DataConfig)), ("training", free_fields(TrainConfig))):
        if fixed[key] is not None:
            fixed[key] = {name: value for name, value in fixed[key].items() if name not in free}
    result: dict[str, Any] = json.loads(json.dumps(fixed))
    return result


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line per field in which two JSON configurations differ: `training.lr: 0.1 there, 0.2 now`."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines


_TELLING = ("network.name", "data.source", "objective", "rule.name", "training.epochs", "training.lr", "training.seed")
_SHOWN = 3


def most_telling(lines: Sequence[str]) -> str:
    """Three of what `differences` found, in a line: what a user chose comes first, hashes of images come last."""
    first = (*_TELLING, "training", "network", "data", "rule", "")
    chosen = [line for line in lines if not line.startswith("images")] or ["the images are others"]
    chosen.sort(key=lambda line: next(i for i, start in enumerate(first) if line.startswith(start)))
    more = [f"and {len(chosen) - _SHOWN} more"] if len(chosen) > _SHOWN else []
    return "; ".join([*chosen[:_SHOWN], *more])
