"""What the small files of a run's folder hold. Those that have a class of their own elsewhere are read as that."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from offramp.config import DataConfig, Spec

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Numbers = tuple[float | None, ...]  # one per exit; a statistic that was not finite is None


@dataclass(frozen=True)
class Training:
    """What is read of the settings of a training, which another version may have written with more or fewer of them."""

    seed: int = 0
    init: str | None = None
    xray: int = 0


@dataclass(frozen=True)
class RunConfig:
    """All that determines a run: `config.json`. Data and network are None where they were made by hand."""

    format: int  # of the folder
    data: DataConfig | None
    network: Spec | None
    objective: Spec
    training: Training
    rule: Spec | None = None  # an older offramp wrote none
    images: Mapping[str, str | None] = field(default_factory=dict)  # hashes, of each part
    written: Mapping[str, Any] = field(default_factory=dict)  # the JSON values that stand there
    values: Mapping[str, Any] = field(default_factory=dict)  # with the defaults of settings that are newer than the run


@dataclass(frozen=True)
class Git:
    """The folder that a training was started from."""

    commit: str
    changed: bool | None = None


@dataclass(frozen=True)
class Start:
    """One start of a training: an item of `environment.json`. What an older offramp did not write is None."""

    started: str | None = None
    command: str | None = None
    offramp: str | None = None
    python: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    numpy: str | None = None
    platform: str | None = None
    device: str | None = None
    processor: str | None = None
    threads: int | None = None
    processes: int | None = None
    git: Git | None = None
    form: str | None = None


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: a line of `metrics.jsonl`. Accuracies in percent, likelihoods in nats, by exit."""

    epoch: int
    step: int | None = None
    lr: float | None = None
    loss: float | None = None
    train_top1: tuple[float, ...] | None = None
    search_top1: tuple[float, ...] | None = None
    search_nll: tuple[float, ...] | None = None
    stats: Mapping[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """What a line of `timing.jsonl` says of an epoch, or of the part of it that one process did."""

    seconds: float
    images: int


@dataclass(frozen=True)
class Division:
    """How the official training images were divided, which says where each of them went."""

    training_images: Count
    limit: Count | None
    holdout: Count
    split_seed: Count


@dataclass(frozen=True)
class HeldOutImages:
    """What is read of `split.json`: a division, where all of it is known, and hashes of `search` and `certify`."""

    training_images: Count | None = None
    limit: Count | None = None
    holdout: Count | None = None
    split_seed: Count | None = None
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def division(self) -> Division | None:
        """None where the images were not divided by these numbers."""
        if self.training_images is None or self.holdout is None or self.split_seed is None:
            return None
        return Division(self.training_images, self.limit, self.holdout, self.split_seed)


@dataclass(frozen=True)
class Ancestor:
    """A run that the weights or answers of another came from, in its `origin.json`; or one that is `unknown`."""

    through: str  # what came from it: `init`, `teacher` or `network`, and of an ancestor's ancestor `init of NAME`
    run: str | None = None
    data: str | None = None  # a name that is the same for the same images
    division: Division | None = None  # how it divided them, where that is known
    images: Mapping[str, str | None] = field(default_factory=dict)  # hashes of its parts
    unknown: str | None = None  # a name for something of which nothing is known

    def to_json(self) -> dict[str, Any]:
        """What stands in the file."""
        left_out = {"unknown"} if self.unknown is None else {"run", "data", "division", "images"}
        return {key: value for key, value in asdict(self).items() if key not in left_out}


@dataclass(frozen=True)
class InitialWeights:
    """The file that a run began with."""

    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Origin:
    """What is read of `origin.json`; a model's library may have said more."""

    model: str | None = None
    weights: str | None = None
    licence: str | None = None
    library: str | None = None
    init: InitialWeights | None = None
    ancestors: tuple[Ancestor, ...] = ()
