"""`--config FILE`: options of a command out of a run's config.json, or of a YAML or JSON file of options."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from offramp.commands.options import Options
from offramp.commands.train import TrainOptions
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.errors import UsageError

FILE = "config.json"  # of a run's folder


@dataclass(frozen=True)
class ConfigFile:
    """Options that stand in a file."""

    path: Path
    values: Mapping[str, Any]  # by their names on the command line, with `-` or `_`
    is_run: bool  # a run's config.json, which says what `offramp train` was asked
    written: Mapping[str, Any]  # all that stands there

    @classmethod
    def read(cls, file: str) -> "ConfigFile":
        """The options in a file, or in the config.json of a run's folder."""
        path = Path(file).expanduser()
        path = path / FILE if path.is_dir() else path
        try:
            values = msgspec.yaml.decode(path.read_bytes())  # JSON is YAML, too
        except OSError as error:
            raise UsageError(f"--config {path} cannot be read: {error.strerror}.") from error
        except msgspec.DecodeError as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"--config {path} is neither YAML nor JSON: {reason}.") from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise UsageError(f"--config {path} holds no options: it should have a NAME: VALUE for each.")
        is_run = "format" in values and isinstance(values.get("training"), dict)
        return cls(path, _of_run(path, values) if is_run else values, is_run, values)

    def words(self, command: type[Options]) -> list[str]:
        """The options as words of a command line, to stand before those that override them."""
        if self.is_run and command is not TrainOptions:
            raise UsageError(f"--config {self.path} is a run's, which says what to train: it is for `offramp train`.")
        switched_on = {field.name for field in _fields(command) if field.default is True}
        return [word for name, value in self.values.items() for word in _words(name, value, name in switched_on)]


def _of_run(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what an older or newer offramp had, and with one level."""
    for name in ("data", "network"):
        if not isinstance(values.get(name), dict):
            raise UsageError(f"--config {path}: its {name} was made by hand, and no command brings it back.")
    known = {field.name for kind in (DataConfig, TrainConfig) for field in fields(kind)} - {"source"}
    settings = {**values["data"], **values["training"]}
    specs = {
        "data": values["data"].get("source"),
        **{name: values.get(name) for name in ("network", "objective", "rule")},
    }
    return {**specs, **{name: value for name, value in settings.items() if name in known}}


def _fields(command: type[Options]) -> Iterator[Field[Any]]:
    nested = (Run, DataConfig, TrainConfig) if command is TrainOptions else ()
    for kind in (command, *nested):
        yield from (field for field in fields(kind) if field.default is not MISSING)


def _words(name: str, value: Any, is_on: bool) -> list[str]:
    option = name.replace("_", "-")
    if value is None or (value is False and not is_on):
        return []
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, Mapping):
        return [f"--{option}", *Spec.from_json(value).words()]
    return [f"--{option}", *(map(str, value) if isinstance(value, list) else [str(value)])]
