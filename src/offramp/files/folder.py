"""Paths and contents of one run's folder."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from offramp import trust
from offramp.config import DataConfig, TrainConfig, determining, with_defaults
from offramp.errors import UsageError
from offramp.files.kinds import Epoch, HeldOutImages, Origin, RunConfig, Start
from offramp.json_files import convert, read, read_lines, write
from offramp.storage import DamagedFileError

FORMAT = 2  # of the folder; a run folder of a newer format is refused
_BOUND = 2  # the first format whose checkpoints and weights say which run they are of
CARD = "card.json"  # what a network that ships with offramp says of itself
OWNER = "run"  # under which they say it: `RunFolder.identity`


class RunFolder:
    """Paths and contents of one run's folder. Of `allow_code` see `offramp.trust`; `kept`, it outlives the training."""

    def __init__(self, path: str | Path, allow_code: Sequence[str] = (), *, kept: bool = True) -> None:
        self.path, self.kept = _at_home(path), kept
        self.allow_code = trust.packages(allow_code, "allow_code")
        self.config = self.path / "config.json"  # all that determines the run, and what may change when it goes on
        self.asked = self.path / "asked.json"  # what a finished run was asked for: the same command again ends at once
        self.environment = self.path / "environment.json"  # versions, device, threads, command of every start
        self.input = self.path / "input.json"  # how an image file becomes the network's input; names of the classes
        self.origin = self.path / "origin.json"  # where the weights that it began with come from, and their licence
        self.split = self.path / "split.json"  # which training images are held out as search and certify
        self.metrics = self.path / "metrics.jsonl"  # a line an epoch: the same byte for byte after any interruption
        self.timing = self.path / "timing.jsonl"  # clocks and rates
        self.xray = self.path / "xray.safetensors"  # what the gradients of some training images did
        self.checkpoints = self.path / "checkpoints"  # the last few states of the training
        self.weights = self.path / "weights.safetensors"  # the final ones; there when the run is finished
        self.best_weights = self.path / "best.safetensors"  # of the best epoch, on request
        self.records = self.path / "records"  # logits of whole data sets
        self.evaluation = self.path / "evaluation.json"  # figures of every exit
        self.report = self.path / "report.html"  # the same as a page
        self.plots = self.path / "plots"  # its plots as files
        self.policy = self.path / "policy.json"  # thresholds
        self.ladder = self.path / "ladder.json"  # policies of rising certified risk
        self.xray_page = self.path / "xray.html"  # a page of xray.safetensors
        self.bench = self.path / "bench.json"  # times to each exit, and how this machine runs it fastest
        self.verdict = self.path / "verdict.json"  # early exits against smaller networks
        self.verdict_page = self.path / "verdict.html"  # the same as a page
        self.verdict_runs = self.path / "verdict"  # the runs of these networks
        self.export = self.path / "export"  # the network for other runtimes
        self.manifest = self.path / "manifest.json"  # what `offramp reproduce` keeps of a run of a study
        self.tensorboard = self.path / "tensorboard"  # curves

    def contents(self) -> list[Path]:
        """All that offramp writes into the folder beside `config.json`, the weights first; it need not be there."""
        paths = [path for path in vars(self).values() if isinstance(path, Path)]
        paths.sort(key=lambda path: path not in (self.weights, self.best_weights, self.checkpoints))
        return [path for path in paths if path not in (self.path, self.config)]

    def record(self, part: str) -> Path:
        """The file with the logits of a part of the data: `train`, `search`, `certify` or `test`."""
        return self.records / f"{part}.safetensors"

    def command(self, name: str) -> str:
        """`offramp NAME` on this folder, as a shell takes it."""
        return shlex.join(["offramp", name, str(self.path)])

    def read_config(self) -> RunConfig:
        """The run's configuration. A folder that is no run, or of a newer offramp, is refused.

        Settings that are newer than the run have their defaults.
        """
        try:
            is_there = self.config.is_file()
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise UsageError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if not is_there:
            raise UsageError(f"{self.path} is not a run: it has no config.json. `offramp train --out DIR` makes one.")
        written = read(self.config, Any)
        if not isinstance(written, dict) or not isinstance(written.get("format"), int):
            raise UsageError(f"{self.path} is not a run: its config.json is not one of offramp.")
        config = convert(written, RunConfig, self.config, newest=FORMAT)
        # Of training, older versions had settings that are gone; nothing is made of what stands there.
        if unknown := (written["data"] or {}).keys() - {field.name for field in fields(DataConfig)}:
            raise UsageError(
                f"{self.path} was written by a newer offramp: its config.json has {', '.join(sorted(unknown))} among "
                "the data's settings. Update offramp."
            )
        kinds = {"data": DataConfig, "training": TrainConfig}
        settled = {name: with_defaults(kinds[name], written[name]) for name in kinds if written[name] is not None}
        return replace(config, written=written, values={**written, **settled})

    def identity(self) -> str:
        """SHA-256 of all that determines the run, as `config.json` has it: its weights and checkpoints carry it."""
        text = json.dumps(determining(self.read_config().written), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def owns(self, identity: Any) -> bool:
        """Whether a file of weights or a checkpoint that carries `identity` is of this run.

        One that carries none (None) is, where the folder is of an older offramp, which wrote none.
        """
        if identity is None:
            return self.read_config().format < _BOUND
        return bool(identity == self.identity())

    def naming(self, config: RunConfig) -> AbstractContextManager[None]:
        """While names that stand in its configuration are built: what they may name is `trust`'s to say."""
        return trust.opened(self.path, config.values, self.allow_code)

    def read_starts(self) -> list[Start]:
        """What `environment.json` says of every start, the first one first."""
        return read(self.environment, list[Start]) if self.environment.is_file() else []

    def add_start(self, start: Mapping[str, Any]) -> None:
        """Write one more start after those that stand there, which stay as they are."""
        self.read_starts()
        before = read(self.environment, list[Any]) if self.environment.is_file() else []
        write(self.environment, [*before, start], indent=2)

    def read_metrics(self) -> list[Epoch]:
        """The finished epochs."""
        lines = read_lines(self.metrics, Epoch) if self.metrics.is_file() else []
        lengths: dict[str, int] = {}
        for line in lines:
            exits = {"train_top1": line.train_top1, "search_top1": line.search_top1, **line.stats}
            for name, values in exits.items():
                if values is not None and lengths.setdefault(name, len(values)) != len(values):
                    raise DamagedFileError(f"{self.metrics} is damaged: its lines are of different numbers of {name}.")
        return lines

    def read_split(self) -> HeldOutImages:
        """What `split.json` says; nothing where there is none."""
        return read(self.split, HeldOutImages) if self.split.is_file() else HeldOutImages()

    def read_origin(self) -> dict[str, Any]:
        """What `origin.json` says, all of it and checked (`Origin`); nothing where there is none."""
        values = read(self.origin, dict[str, Any]) if self.origin.is_file() else {}
        convert(values, Origin, self.origin)
        return values


def _at_home(path: str | Path) -> Path:
    """A path, with the home folder for a tilde. A name such as 7 is a number where a `Spec` was read."""
    try:
        return Path(str(path)).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} is not there: no user of that name has a home folder here.") from error


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
