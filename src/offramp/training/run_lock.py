"""Locks a run's folder to one process at a time and, once something was saved, to one configuration."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp import trust
from offramp.config import DataConfig, TrainConfig, determining, differences, free_fields, most_telling
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.json_files import write
from offramp.training.checkpoints import CheckpointStore


@contextmanager
def locked(folder: RunFolder, config: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[None]:
    """The folder belongs to this process while the body runs.

    Writes `config.json`, except into a finished run, which stays as it is. Refuses a folder that holds something else,
    a run of another configuration of which something was saved (showing the fields that differ), or a training that is
    going on. A run of another configuration is removed where nothing of it was saved, or with `overwrite`.
    """
    try:
        _check(folder, config, overwrite)
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = open(folder.path / ".lock", "w")  # noqa: SIM115 - held, and released by the system even after kill -9
    except OSError as error:
        raise UsageError(f"The folder {folder.path} cannot be written: {error.strerror or error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OfframpError(f"Another process is training in {folder.path} right now.") from None
        _check(folder, config, overwrite)  # again: another process may have been here since
        if holds_another(folder, config):
            for path in folder.contents():
                _remove(path)
            write(folder.config, config, indent=2)  # last: until then the folder can be told to be a run's
        if not folder.weights.is_file():
            for part in (*folder.path.glob(".*.part"), *folder.checkpoints.glob(".*.part")):  # of a killed process
                _remove(part)
            write(folder.config, _as_begun(folder, config), indent=2)
        if folder.kept:  # it is the user who names this run's code, now or again
            trust.remember(folder.path, folder.read_config().values)
        yield


def is_claimed(folder: RunFolder) -> bool:
    """Whether something was saved of the run: before, its folder may become that of another."""
    return folder.weights.is_file() or not CheckpointStore(folder.checkpoints, 1).is_empty()


def holds_another(folder: RunFolder, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run of another configuration."""
    return folder.config.is_file() and bool(_differences(folder, config))


def _differences(folder: RunFolder, config: Mapping[str, Any]) -> list[str]:
    return differences(determining(folder.read_config().values), determining(config))


def _check(folder: RunFolder, config: Mapping[str, Any], overwrite: bool) -> None:
    if folder.config.is_file():
        lines = _differences(folder, config)
        if lines and is_claimed(folder) and not overwrite:
            raise UsageError(
                f"{folder.path} holds a run of another configuration ({most_telling(lines)}). Choose another folder, "
                "the same configuration to continue, or --overwrite to remove that run."
            )
    elif folder.path.is_dir() and any(not entry.name.startswith(".") for entry in folder.path.iterdir()):
        raise UsageError(f"{folder.path} is not empty and holds no run of offramp; choose another folder.")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _as_begun(folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to write: what determines the run as it was written first, what is free as it is now.

    A newer offramp may have settings that the run was begun without. The files of the run carry the hash of what was
    written, so it stays.
    """
    if not folder.config.is_file():
        return dict(config)
    begun = folder.read_config().written
    written: dict[str, Any] = {**begun, "offramp": config["offramp"]}
    for part, config_class in (("data", DataConfig), ("training", TrainConfig)):
        if begun[part] is not None:
            free = {name: config[part][name] for name in free_fields(config_class)}
            written[part] = {**begun[part], **free}
    return written
