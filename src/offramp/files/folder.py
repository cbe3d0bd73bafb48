"""Paths and contents of one run's folder."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

from offramp import trust
from offramp.checks import Maybe, fault
from offramp.config import DataConfig, TrainConfig, determining, with_defaults
from offramp.errors import OfframpError, UsageError
from offramp.storage import parse_json

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
