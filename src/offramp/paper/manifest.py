"""What a finished run leaves behind: a small file with all that tables need, fit to be committed.

K exits. A manifest says which configuration, data and versions gave its figures, so that studies can be done in pieces
and on several machines: the run itself is not needed any more.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from scipy.stats import rankdata

from offramp import objectives
from offramp.config import Run, differences
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record
from offramp.files import Clock, Epoch, RunFolder, Start
from offramp.files.kinds import Git, Numbers
from offramp.files.xray import Xray
from offramp.json_files import convert, read, read_lines, write
from offramp.paper.certified import Certified, certified
from offramp.paper.identity import command, configuration, run_hash, run_name
from offramp.results.evaluation import EvaluationFile, ExitFile
from offramp.terminal import say

FORMAT = 1
SPARE_LOAD = 0.5  # more than that beside the runs of a command is other work
# What may change what comes out:
_START = ("offramp", "torch", "torchvision", "numpy", "python", "device", "processor", "threads")
_MADE = ("offramp", "torch", "python", "device", "processor", "threads", "git")
_FIGURES = ("top1", "nll", "ece", "damping")
FloatArray = npt.NDArray[np.float32]
_STATS = ("gamma", "weight")  # what claims ask of training
Percent = Annotated[float, Meta(ge=0, le=100)]  # never NaN, as a loss may be


@dataclass(frozen=True)
class _Training:
    seed: int


@dataclass(frozen=True)
class _Run:
    training: _Training


@dataclass(frozen=True)
class _Images:
    train: str
    test: str


@dataclass(frozen=True)
class MadeBy:
    """A start of a run: where, and with which versions; older manifests know fewer."""

    device: str
    threads: int
    git: Git | None = None
    processor: str | None = None
    offramp: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    numpy: str | None = None
    python: str | None = None

    @property
    def device_name(self) -> str:
        """The device's name; of a processor its own, where that is known."""
        return self.processor if self.device == "cpu" and self.processor else self.device


@dataclass(frozen=True)
class _Timing:
    seconds: float
    jobs: int


@dataclass(frozen=True)
class _Train:
    nll: float
    damping: float | None


@dataclass(frozen=True)
class _Exit:
    operations: float
    top1: Percent
    ece: float
    damping: float | None
    train: _Train | None
    parameters: float | None = None


@dataclass(frozen=True)
class _BestEpoch:
    epoch: int
    top1: tuple[Percent, ...]


@dataclass(frozen=True)
class _Load:
    start: float
    end: float
    own: int


@dataclass(frozen=True)
class _Xray:
    learned: tuple[float, ...]
    damped: tuple[float, ...]
    reversed: tuple[float, ...]


@dataclass(frozen=True)
class _Order:
    order: float
    order_train: float
    excess: float
    excess_train: float


@dataclass(frozen=True)
class ManifestFile:
    """What pages read of a manifest."""

    format: int
    name: str
    hash: str
    run: _Run
    images: _Images
    weights: str
    made_by: MadeBy
    timing: _Timing
    exits: Annotated[tuple[_Exit, ...], Meta(min_length=1)]
    best_epoch: _BestEpoch | None
    budgeted: tuple[tuple[float, float], ...] | None
    starts: tuple[MadeBy, ...] = ()
    test_images: int | None = None
    load: _Load | None = None
    search_top1: tuple[Percent, ...] | None = None
    xray: _Xray | None = None
    order: _Order | None = None
    certified: Certified | None = None
    last_stats: Mapping[str, Numbers | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A finished run in short.

    Attributes:
        values: What the file holds; see `of`.
        path: Where it was read from or written to.
    """

    values: Mapping[str, Any]
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
        starts = folder.read_starts()
        dynamic, last = evaluation.dynamic, folder.read_metrics()[-1]
        values = {
            "format": FORMAT,
            "name": run_name(run),
            "hash": run_hash(run),
            "run": configuration(run),
            "command": command(run, f"runs/{run_name(run)}"),
            "data": evaluation.data,
            "images": {**folder.read_config().images, "test": evaluation.fingerprint},
            "test_images": evaluation.images,
            "weights": evaluation.weights,
            "made_by": _described(starts[-1], _MADE),
            **_several(starts),
            "timing": {**_timing(folder, run, last), "jobs": jobs},
            **_load(load, jobs * ((starts[-1].threads or 1) + run.data.workers)),
            "mean_top1": evaluation.mean_top1,
            "exits": [_exit(exit) for exit in evaluation.exits],
            "last_epoch": {"epoch": last.epoch, "loss": last.loss},
            "search_top1": None if last.search_top1 is None else list(last.search_top1),
            **_last_stats(last),
            **_xray(folder),
            **_order(folder, run),
            **_certified(folder, [exit.operations for exit in evaluation.exits], evaluation.weights),
            "best_epoch": _best_epoch(folder),
            "budgeted": None if dynamic is None else [[p.operations, p.accuracy] for p in dynamic.published],
        }
        return cls(values, folder.manifest)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write(path, self.values)

    @property
    def file(self) -> ManifestFile:
        """The values by name: `starts` are empty where device, threads and versions stayed the same.

        Raises:
            UsageError: It is of a newer format.
            OfframpError: It is damaged.
        """
        hint = "Restore it, or move it away."
        return convert(self.values, ManifestFile, f"The manifest {self.path}", newest=FORMAT, hint=hint)

    def completed(self, folder: RunFolder) -> "Manifest":
        """With what older manifests lack and the run's folder still tells; itself where there is nothing to add."""
        if self.file.certified:
            return self
        more = _certified(folder, [exit.operations for exit in self.file.exits], self.file.weights)
        return Manifest({**self.values, **more}, self.path) if more else self

    @property
    def seconds(self) -> float:
        """Seconds spent in training steps, as if the run had never been interrupted."""
        return self.file.timing.seconds

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
        then, now = self.values["run"], json.loads(json.dumps(configuration(run)))
        lines = [line for line in differences(then, now) if ": None there" not in line]  # a field it did not have yet
        if lines:
            raise OfframpError(
                f"{self.path} has the hash of a run that is wanted, but another configuration ({'; '.join(lines)}). It "
                "was made by an offramp with other defaults; move it away to run it again."
            )


def _load(load: tuple[float, float] | None, own: int) -> dict[str, Any]:
    """The load average at both ends of training, and what the runs of the command come to by themselves."""
    return {} if load is None else {"load": {"start": load[0], "end": load[1], "own": own}}


def _described(start: Start, names: Sequence[str]) -> dict[str, Any]:
    values = asdict(start)
    return {name: values[name] for name in names}


def _several(starts: Sequence[Start]) -> dict[str, Any]:
    """The starts of a run that was continued on another device, with other threads or with other versions."""
    alike = itertools.groupby(starts, key=lambda start: _described(start, _START))
    kept = [_described(next(group), (*_START, "git")) for _, group in alike]
    return {"starts": kept} if len(kept) > 1 else {}


def _exit(exit: ExitFile) -> dict[str, Any]:
    """An exit's figures on test, and on training images with test transforms."""
    test, train = ({name: getattr(of, name) for name in _FIGURES} if of else None for of in (exit, exit.train))
    return {"operations": exit.operations, "parameters": exit.parameters, **(test or {}), "train": train}


def _best_epoch(folder: RunFolder) -> dict[str, Any] | None:
    """The epoch of the best mean over exits on what was watched; None where nothing was."""
    watched = [(line.search_top1, line.epoch) for line in folder.read_metrics() if line.search_top1 is not None]
    if not watched:
        return None
    top1, epoch = max(watched, key=lambda line: fmean(line[0]))
    return {"epoch": epoch, "top1": list(top1)}


def _last_stats(last: Epoch) -> dict[str, Any]:
    """What the objective said of each exit, its mean over the last epoch; nothing where it said none of it."""
    if not last.stats.keys() & set(_STATS):
        return {}
    return {"last_stats": {name: list(last.stats[name]) if name in last.stats else None for name in _STATS}}


def _xray(folder: RunFolder) -> dict[str, Any]:
    """By exit, averaged over all epochs: the share of the push that comes from learned images (F[y] of 95 % and above),
    and the shares of images whose gradient is damped and reversed; nothing where nothing was recorded."""
    if not folder.xray.is_file():
        return {}
    record = Xray.load(folder.xray)
    _, damped_K, reversed_K = record.shares().mean(1).tolist()
    return {"xray": {"learned": record.sources()[-1].mean(0).tolist(), "damped": damped_K, "reversed": reversed_K}}


def _order(folder: RunFolder, run: Run) -> dict[str, Any]:
    """Whether exits that do better on an image are damped more there, on test and on training images as they are.

    Nothing where the objective has no coefficient, or where it is the same for all exits.
    """
    figures: dict[str, float] = {}
    for part, ending in (("test", ""), ("train", "_train")):
        if not folder.record(part).is_file():
            return {}
        record = Record.load(folder.record(part))
        terms = objectives.build(run.objective).terms(record.logits_KSC, record.targets_S)
        if "gamma" not in terms.stats_KB:
            return {}
        gamma_KS, true_KS = (terms.stats_KB[name].numpy() for name in ("gamma", "F_true"))
        order = damping_order(gamma_KS, true_KS)
        if order is None:
            return {}
        figures |= {f"order{ending}": order[0], f"excess{ending}": order[1]}
    return {"order": figures}


def _certified(folder: RunFolder, operations_K: Sequence[float], weights: str) -> dict[str, Any]:
    """What certificates on the test images' logits save; nothing where those of these weights are not kept."""
    path = folder.record("test")
    record = Record.load(path) if path.is_file() else None
    figures = certified(record, operations_K) if record and record.weights == weights else None
    return {} if figures is None else {"certified": {**asdict(figures), "leaving": list(figures.leaving)}}


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


def _timing(folder: RunFolder, run: Run, last: Epoch) -> dict[str, float]:
    """From the clocks of all epochs, whole or resumed: the time of an image, and so of all of them."""
    lines = read_lines(folder.timing, Clock)
    per_image = sum(line.seconds for line in lines) / sum(line.images for line in lines)
    # A killed epoch leaves no line and its rest a short one: then the number of steps says how long an epoch is.
    by_steps = ((last.step or 0) // last.epoch - 1) * run.data.batch_size + 1
    an_epoch = max(by_steps, *(line.images for line in lines))
    return {"seconds": round(per_image * an_epoch * run.training.epochs, 2), "milliseconds_per_image": per_image * 1000}


def find(folders: Iterable[Path]) -> dict[str, Manifest]:
    """The manifests in these folders and below, by hash; of several of one run the first that is found.

    Files that are no manifests are passed over, with a note those that are not even JSON.

    Raises:
        OfframpError: A manifest that is damaged, or of a newer format.
    """
    manifests: dict[str, Manifest] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            manifest = _read(path)
            if manifest is not None:
                manifests.setdefault(manifest.file.hash, manifest)
    return manifests


def _read(path: Path) -> Manifest | None:
    try:
        values = read(path, Any)
    except (OfframpError, UsageError) as error:
        _note(f"Passed over, as no manifest: {error}")
        return None
    if not isinstance(values, dict) or not {"format", "hash", "run"} <= values.keys():
        return None
    return Manifest(values, path)


@functools.cache  # a command looks for manifests more than once, and says it once
def _note(text: str) -> None:
    say(f"offramp: {text}")
