"""What a finished run leaves behind: a small file with all that tables need, fit to be committed.

K exits. A manifest says which configuration, data and versions gave its figures, so that studies can be done in pieces
and on several machines: whoever has the manifest needs the run no more.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from offramp import objectives
from offramp.checks import PERCENT, fault
from offramp.config import Run, differences
from offramp.errors import OfframpError
from offramp.evaluation import Record
from offramp.evaluation.xray import Xray
from offramp.paper.identity import command, configuration, run_hash, run_name
from offramp.runs import RunFolder, read_json
from offramp.storage import write_atomically
from offramp.terminal import say

FORMAT = 1
FloatArray = npt.NDArray[np.float32]
SPARE_LOAD = 0.5  # more than that beside the runs of a command is other work
# What may change what comes out:
_START = ("offramp", "torch", "torchvision", "numpy", "python", "device", "processor", "threads")
_MADE = ("offramp", "torch", "python", "device", "processor", "threads", "git")
_MADE_BY = {"device": str, "threads": int}
_SHAPE = {  # what pages read of a manifest, see `checks.fault`
    "format": int,
    "name": str,
    "hash": str,
    "run": {"training": {"seed": int}},
    "images": {"train": str, "test": str},
    "weights": str,
    "made_by": {**_MADE_BY, "git": ({"commit": str},)},
    "timing": {"seconds": float, "jobs": int},
    "exits": [
        {
            "operations": float,
            "top1": PERCENT,
            "ece": float,
            "damping": (float,),
            "train": ({"nll": float, "damping": (float,)},),
        }
    ],
    "best_epoch": ({"epoch": int, "top1": [PERCENT]},),
    "budgeted": ([[float]],),
}
_STATS = ("gamma", "weight")  # what claims ask of training
_MORE = {  # where they are there
    "starts": [_MADE_BY],
    "test_images": int,
    "search_top1": ([PERCENT],),
    "xray": {name: [float] for name in ("learned", "damped", "reversed")},
    "order": {name: float for name in ("order", "order_train", "excess", "excess_train")},
    "load": {"start": float, "end": float, "own": int},
    "last_stats": {name: ([float],) for name in _STATS},
}


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
        evaluation: Mapping[str, Any],
        jobs: int,
        load: tuple[float, float] | None = None,
    ) -> "Manifest":
        """The manifest of a finished run, not yet written.

        Args:
            run: Its configuration.
            folder: Its folder.
            evaluation: What its `evaluation.json` holds.
            jobs: How many runs went on side by side: what its times are worth.
            load: The machine's load average at the beginning and at the end of training, where it is known of all of
                it.
        """
        starts = folder.read_starts()
        dynamic = evaluation["dynamic"]
        values = {
            "format": FORMAT,
            "name": run_name(run),
            "hash": run_hash(run),
            "run": configuration(run),
            "command": command(run, f"runs/{run_name(run)}"),
            "data": evaluation["data"],
            "images": {**folder.read_config()["images"], "test": evaluation["fingerprint"]},
            "test_images": evaluation["images"],
            "weights": evaluation["weights"],
            "made_by": {key: starts[-1].get(key) for key in _MADE},
            **_several(starts),
            "timing": {**_timing(folder, run), "jobs": jobs},
            **_load(load, jobs * (starts[-1]["threads"] + run.data.workers)),
            "mean_top1": evaluation["mean_top1"],
            "exits": [_exit(exit) for exit in evaluation["exits"]],
            "last_epoch": {key: value for key, value in folder.read_metrics()[-1].items() if key in ("epoch", "loss")},
            "search_top1": folder.read_metrics()[-1].get("search_top1"),
            **_last_stats(folder),
            **_xray(folder),
            **_order(folder, run),
            "best_epoch": _best_epoch(folder),
            "budgeted": None if dynamic is None else [_point(point) for point in dynamic["published"]],
        }
        return cls(values, folder.manifest)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(path, (json.dumps(self.values, indent=1) + "\n").encode())

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.values["name"])

    @property
    def seconds(self) -> float:
        """Seconds spent in training steps, as if the run had never been interrupted."""
        return float(self.values["timing"]["seconds"])

    @property
    def threads(self) -> int:
        """CPU threads, at the last start."""
        return int(self.values["made_by"]["threads"])

    @property
    def undisturbed(self) -> bool | None:
        """Whether the machine did nothing but this command's runs at both ends of training; None where nothing says."""
        load = self.values.get("load")
        return None if load is None else max(load["start"], load["end"]) <= load["own"] + SPARE_LOAD

    @property
    def starts(self) -> Sequence[Mapping[str, Any]]:
        """Where a run was begun and continued, in order; empty where device, threads and versions stayed the same."""
        starts: Sequence[Mapping[str, Any]] = self.values.get("starts", ())
        return starts

    def check(self, run: Run, num_exits: int) -> None:
        """Refuse a manifest of this hash that is of another run.

        Its configuration is another if one of the defaults has changed since; its exits are fewer if it is damaged.

        Raises:
            OfframpError: What differs.
        """
        counts = [len(self.values["exits"]), *([len(best["top1"])] if (best := self.values["best_epoch"]) else [])]
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


def _several(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The starts of a run that was continued on another device, with other threads or with other versions."""
    alike = itertools.groupby(starts, key=lambda start: [start.get(key) for key in _START])
    kept = [{key: start.get(key) for key in (*_START, "git")} for start in (next(group) for _, group in alike)]
    return {"starts": kept} if len(kept) > 1 else {}


def _exit(exit: Mapping[str, Any]) -> dict[str, Any]:
    """An exit's figures on test, and on training images with test transforms."""
    names = ("top1", "nll", "ece", "damping")
    train = exit["train"] and {name: exit["train"][name] for name in names}
    counts = {name: exit[name] for name in ("operations", "parameters")}
    return {**counts, **{name: exit[name] for name in names}, "train": train}


def _point(point: Mapping[str, Any]) -> list[float]:
    return [point["operations"], point["accuracy"]]


def _best_epoch(folder: RunFolder) -> dict[str, Any] | None:
    """The epoch of the best mean over exits on what was watched; None where nothing was."""
    watched = [line for line in folder.read_metrics() if line.get("search_top1") is not None]
    if not watched:
        return None
    best = max(watched, key=lambda line: fmean(line["search_top1"]))
    return {"epoch": best["epoch"], "top1": best["search_top1"]}


def _last_stats(folder: RunFolder) -> dict[str, Any]:
    """What the objective said of each exit, its mean over the last epoch; nothing where it said none of it."""
    said = folder.read_metrics()[-1]["stats"]
    return {"last_stats": {name: said.get(name) for name in _STATS}} if said.keys() & set(_STATS) else {}


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
    found: dict[str, float] = {}
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
        found |= {f"order{ending}": order[0], f"excess{ending}": order[1]}
    return {"order": found}


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


def _timing(folder: RunFolder, run: Run) -> dict[str, float]:
    """From the clocks of all epochs, whole or resumed: the time of an image, and so of all of them."""
    lines = [json.loads(line) for line in folder.timing.read_text().splitlines()]
    seconds, images = sum(line["seconds"] for line in lines), sum(line["images"] for line in lines)
    per_image = seconds / images
    last = folder.read_metrics()[-1]
    # A killed epoch leaves no line and its rest a short one: then the number of steps says how long an epoch is.
    by_steps = (last["step"] // last["epoch"] - 1) * run.data.batch_size + 1
    an_epoch = max(by_steps, *(line["images"] for line in lines))
    return {"seconds": round(per_image * an_epoch * run.training.epochs, 2), "milliseconds_per_image": per_image * 1000}


def find(folders: Iterable[Path]) -> dict[str, Manifest]:
    """The manifests in these folders and below, by hash; of several of one run the first that is found.

    Files that are no manifests are passed over, with a note those that are not even JSON.

    Raises:
        OfframpError: A manifest that is damaged, or of a newer format.
    """
    found: dict[str, Manifest] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            values = _read(path)
            if values is not None:
                found.setdefault(values["hash"], Manifest(values, path))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = read_json(path)
    except (OfframpError, OSError) as error:
        _note(f"Passed over, as no manifest: {error}")
        return None
    if not isinstance(values, dict) or not {"format", "hash", "run"} <= values.keys():
        return None
    if type(values["format"]) is int and values["format"] > FORMAT:
        raise OfframpError(f"{path} was written by a newer offramp. Update offramp.")
    found = fault(values, {**_SHAPE, **{key: shape for key, shape in _MORE.items() if key in values}}, "")
    if found is not None:
        raise OfframpError(f"The manifest {path} is damaged: {found}. Restore it, or move it away.")
    return values


@functools.cache  # a command looks for manifests more than once, and says it once
def _note(text: str) -> None:
    say(f"offramp: {text}")
