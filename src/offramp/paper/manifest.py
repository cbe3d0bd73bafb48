"""What a finished run leaves behind: a small file with all that tables need, fit to be committed.

K exits. A manifest says which configuration, data and versions gave its figures, so that studies can be done in pieces
and on several machines: the run itself is not needed any more.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from scipy.stats import rankdata

from offramp import objectives
from offramp.config import Run, differences
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record
from offramp.files import Clock, Epoch, RunFolder, Start
from offramp.files.evaluation import EvaluationFile, ExitFile, Percent
from offramp.files.kinds import Git, Numbers
from offramp.files.xray import Xray
from offramp.json_files import convert, read, read_lines, write
from offramp.paper.certified import Certified, certified
from offramp.paper.identity import command, configuration, run_hash, run_name
from offramp.terminal import say

FORMAT = 1
SPARE_LOAD = 0.5  # more than that beside the runs of a command is other work
FloatArray = npt.NDArray[np.float32]
_STATS = ("gamma", "weight")  # what claims ask of training


@dataclass(frozen=True)
class MadeBy:
    """A start of a run: where, and with which versions, all that may change what comes out; older ones know fewer."""

    device: str
    threads: int
    form: Literal["plain", "compiled"] | None = None
    git: Git | None = None
    processor: str | None = None
    offramp: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    numpy: str | None = None
    python: str | None = None

    @classmethod
    def of(cls, start: Start, folder: RunFolder) -> "MadeBy":
        """What is kept of a start."""
        return convert(dataclasses.asdict(start), cls, folder.environment)

    @property
    def device_name(self) -> str:
        """The device's name; of a processor its own, where that is known."""
        return self.processor if self.device == "cpu" and self.processor else self.device


@dataclass(frozen=True)
class Images:
    """Hashes of the images of each part."""

    train: str
    test: str
    search: str | None = None
    certify: str | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds spent in training steps, as if the run had never been interrupted, beside so many other runs (`jobs`)."""

    seconds: float
    jobs: int
    milliseconds_per_image: float = 0.0


@dataclass(frozen=True)
class LastEpoch:
    """The loss of the last epoch."""

    epoch: int
    loss: float | None


@dataclass(frozen=True)
class BestEpoch:
    """The epoch of the best mean over exits on what was watched."""

    epoch: int
    top1: tuple[Percent, ...]


@dataclass(frozen=True)
class Load:
    """The load average at both ends of training, and what the runs of the command come to by themselves."""

    start: float
    end: float
    own: int


@dataclass(frozen=True)
class XrayShares:
    """By exit, averaged over all epochs: the share of the push that comes from learned images (F[y] of 95 % and above),
    and the shares of images whose gradient is damped and reversed."""

    learned: tuple[float, ...]
    damped: tuple[float, ...]
    reversed: tuple[float, ...]


@dataclass(frozen=True)
class Order:
    """Whether exits that do better on an image are damped more there, on test and on training images as they are."""

    order: float
    excess: float
    order_train: float
    excess_train: float


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """What a manifest's file holds; older ones have less.

    Attributes:
        run: Its configuration (`identity.configuration`).
        command: What trains it by hand.
        made_by: Its last start.
        starts: All of them where it was continued on another device, with other threads, versions or in another form.
        load: None where it is not known of all of the training.
        last_stats: What the objective said of each exit, its mean over the last epoch; empty where it said none of it.
        xray: None where no gradients were recorded.
        order: None where the objective has no coefficient, or where it is the same for all exits.
        best_epoch: None where nothing was watched.
        budgeted: Operations and accuracy of the published curve; None where nothing was held out.
    """

    format: int
    name: str
    hash: str
    run: dict[str, Any]
    command: str = ""
    data: str = ""
    images: Images
    test_images: int | None = None
    weights: str
    made_by: MadeBy
    starts: tuple[MadeBy, ...] = ()
    timing: Timing
    load: Load | None = None
    mean_top1: float
    exits: Annotated[tuple[ExitFile, ...], Meta(min_length=1)]
    last_epoch: LastEpoch | None = None
    search_top1: tuple[Percent, ...] | None = None
    last_stats: Mapping[str, Numbers | None] = field(default_factory=dict)
    xray: XrayShares | None = None
    order: Order | None = None
    certified: Certified | None = None
    best_epoch: BestEpoch | None
    budgeted: tuple[tuple[float, float], ...] | None

    def __post_init__(self) -> None:
        if not isinstance(self.run.get("training"), dict) or not isinstance(self.run["training"].get("seed"), int):
            raise ValueError("its run has no seed")

    @property
    def seed(self) -> int:
        """That of the training."""
        return int(self.run["training"]["seed"])


@dataclass(frozen=True)
class Manifest:
    """A finished run in short, and where that was read from or is written to."""

    file: ManifestFile
    path: Path

    @classmethod
    def of(
        cls,
        run: Run,
        folder: RunFolder,
        evaluation: EvaluationFile,
        jobs: int,
        load: tuple[float, float] | None = None,
    ) -> "Manifest":
        """The manifest of a finished run, not yet written.

        Args:
            jobs: How many runs went on side by side: what its times are worth.
            load: The machine's load average at the beginning and at the end of training, where it is known of all of
                it.
        """
        starts = [MadeBy.of(start, folder) for start in folder.read_starts()]
        alike = [next(group) for _, group in itertools.groupby(starts, lambda s: dataclasses.replace(s, git=None))]
        dynamic, last = evaluation.dynamic, folder.read_metrics()[-1]
        images = {**folder.read_config().images, "test": evaluation.fingerprint}
        file = ManifestFile(
            format=FORMAT,
            name=run_name(run),
            hash=run_hash(run),
            run=configuration(run),
            command=command(run, f"runs/{run_name(run)}"),
            data=evaluation.data,
            images=convert(images, Images, folder.config),
            test_images=evaluation.images,
            weights=evaluation.weights,
            made_by=starts[-1],
            starts=tuple(alike) if len(alike) > 1 else (),
            timing=_timing(folder, run, last, jobs),
            load=None if load is None else Load(*load, own=jobs * (starts[-1].threads + run.data.workers)),
            mean_top1=evaluation.mean_top1,
            exits=evaluation.exits,
            last_epoch=LastEpoch(last.epoch, last.loss),
            search_top1=last.search_top1,
            last_stats={name: last.stats.get(name) for name in _STATS} if last.stats.keys() & set(_STATS) else {},
            xray=_xray(folder),
            order=_order(folder, run),
            certified=_certified(folder, [exit.operations for exit in evaluation.exits], evaluation.weights),
            best_epoch=_best_epoch(folder),
            budgeted=None if dynamic is None else tuple((p.operations, p.accuracy) for p in dynamic.published),
        )
        return cls(file, folder.manifest)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            UsageError: It is of a newer format.
            OfframpError: It is damaged.
        """
        return cls._from_json(read(path, Any), path)

    @classmethod
    def _from_json(cls, values: Any, path: Path) -> "Manifest":
        hint = "Restore it, or move it away."
        return cls(convert(values, ManifestFile, f"The manifest {path}", newest=FORMAT, hint=hint), path)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write(path, self.file)

    def completed(self, folder: RunFolder) -> "Manifest":
        """With what older manifests lack and the run's folder still tells; itself where there is nothing to add."""
        file = self.file
        if file.certified is not None:
            return self
        figures = _certified(folder, [exit.operations for exit in file.exits], file.weights)
        return self if figures is None else Manifest(dataclasses.replace(file, certified=figures), self.path)

    @property
    def undisturbed(self) -> bool | None:
        """Whether the machine did nothing but this command's runs at both ends of training; None where nothing says."""
        load = self.file.load
        return None if load is None else max(load.start, load.end) <= load.own + SPARE_LOAD

    def check(self, run: Run, num_exits: int) -> None:
        """Refuse a manifest of this hash that is of another run.

        Its configuration is another if one of the defaults has changed since; its exits are fewer if it is damaged.

        Raises:
            OfframpError: What differs.
        """
        counts = [len(self.file.exits), *([len(best.top1)] if (best := self.file.best_epoch) else [])]
        if set(counts) != {num_exits}:
            raise OfframpError(
                f"The manifest {self.path} is damaged: it has {min(counts)} exits, its setting's network {num_exits}. "
                "Restore it, or move it away."
            )
        then, now = self.file.run, configuration(run)
        lines = [line for line in differences(then, now) if ": None there" not in line]  # a field it did not have yet
        if lines:
            raise OfframpError(
                f"{self.path} has the hash of a run that is wanted, but another configuration ({'; '.join(lines)}). It "
                "was made by an offramp with other defaults; move it away to run it again."
            )


def _best_epoch(folder: RunFolder) -> BestEpoch | None:
    watched = [(line.search_top1, line.epoch) for line in folder.read_metrics() if line.search_top1 is not None]
    if not watched:
        return None
    top1, epoch = max(watched, key=lambda line: fmean(line[0]))
    return BestEpoch(epoch, top1)


def _xray(folder: RunFolder) -> XrayShares | None:
    if not folder.xray.is_file():
        return None
    record = Xray.load(folder.xray)
    _, damped_K, reversed_K = record.shares().mean(1).tolist()
    return XrayShares(tuple(record.sources()[-1].mean(0).tolist()), tuple(damped_K), tuple(reversed_K))


def _order(folder: RunFolder, run: Run) -> Order | None:
    figures: list[float] = []
    for part in ("test", "train"):
        if not folder.record(part).is_file():
            return None
        record = Record.load(folder.record(part))
        stats_KB = objectives.build(run.objective).terms(record.logits_KSC, record.targets_S).stats_KB
        order = damping_order(stats_KB["gamma"].numpy(), stats_KB["F_true"].numpy()) if "gamma" in stats_KB else None
        if order is None:
            return None
        figures += order
    return Order(*figures)


def _certified(folder: RunFolder, operations_K: Sequence[float], weights: str) -> Certified | None:
    """What certificates on the test images' logits save; nothing where those of these weights are not kept."""
    path = folder.record("test")
    record = Record.load(path) if path.is_file() else None
    return certified(record, operations_K) if record and record.weights == weights else None


def damping_order(gamma_KS: FloatArray, true_KS: FloatArray) -> tuple[float, float] | None:
    """Whether the exits with the larger F[y] have the larger coefficient: two means over images, each over its exits.

    Spearman's correlation of the two, 0 where the exits of an image cannot be ranked; and by how many percent the
    coefficient of the best exit exceeds the mean. None where all exits have one coefficient.
    """
    if gamma_KS.shape[0] < 2 or (np.ptp(gamma_KS, axis=0) <= 1e-6 * gamma_KS.max(axis=0)).all():
        return None
    ranks = [rankdata(values, axis=0) for values in (gamma_KS, true_KS)]
    first, second = (rank - rank.mean(axis=0) for rank in ranks)
    scale = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    correlations = np.where(scale > 0, (first * second).sum(axis=0) / np.where(scale > 0, scale, 1), 0.0)
    best = np.take_along_axis(gamma_KS, true_KS.argmax(axis=0)[None], axis=0)[0]
    return float(correlations.mean()), float(100 * (best / gamma_KS.mean(axis=0) - 1).mean())


def _timing(folder: RunFolder, run: Run, last: Epoch, jobs: int) -> Timing:
    """From the clocks of all epochs, whole or resumed: the time of an image, and so of all of them."""
    lines = read_lines(folder.timing, Clock)
    per_image = sum(line.seconds for line in lines) / sum(line.images for line in lines)
    # A killed epoch leaves no line and its rest a short one: then the number of steps says how long an epoch is.
    by_steps = ((last.step or 0) // last.epoch - 1) * run.data.batch_size + 1
    an_epoch = max(by_steps, *(line.images for line in lines))
    return Timing(round(per_image * an_epoch * run.training.epochs, 2), jobs, per_image * 1000)


def find(folders: Iterable[Path]) -> dict[str, Manifest]:
    """The manifests in these folders and below, by hash; of several of one run the first that is found.

    Files that are no manifests are passed over, with a note those that are not even JSON.

    Raises:
        OfframpError: A manifest that is damaged, or of a newer format.
    """
    manifests: dict[str, Manifest] = {}
    for path in itertools.chain.from_iterable(sorted(folder.rglob("*.json")) for folder in folders):
        try:
            values = read(path, Any)
        except (OfframpError, UsageError) as error:
            _note(f"Passed over, as no manifest: {error}")
            continue
        if isinstance(values, dict) and {"format", "hash", "run"} <= values.keys():
            manifest = Manifest._from_json(values, path)
            manifests.setdefault(manifest.file.hash, manifest)
    return manifests


@functools.cache  # a command looks for manifests more than once, and says it once
def _note(text: str) -> None:
    say(f"offramp: {text}")
