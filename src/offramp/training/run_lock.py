"""Locks a run's folder to one process at a time and to one configuration."""

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from offramp import trust
from offramp.config import FORMER_FORMS, DataConfig, TrainConfig, determining, differences, free_fields
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder, write


@contextmanager
def locked(folder: RunFolder, config: Mapping[str, Any]) -> Iterator[None]:
    """The folder belongs to this process while the body runs.

    Writes `config.json`, except into a finished run, which stays as it is. Refuses a folder that holds something else,
    another configuration (showing the fields that differ), or a training that is going on.
    """
    try:
        _check(folder, config)
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = open(folder.path / ".lock", "w")  # noqa: SIM115 - held, and released by the system even after kill -9
    except OSError as error:
        raise UsageError(f"The folder {folder.path} cannot be written: {error.strerror or error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OfframpError(f"Another process is training in {folder.path} right now.") from None
        _check(folder, config)  # again: another process may have been here since
        if not folder.weights.is_file():
            for part in (*folder.path.glob(".*.part"), *folder.checkpoints.glob(".*.part")):  # of a killed process
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            write(folder.config, _as_begun(folder, config), indent=2)
        if folder.kept:  # it is the user who names this run's code, now or again
            trust.remember(folder.path, folder.read_config().values)
        yield


def _check(folder: RunFolder, config: Mapping[str, Any]) -> None:
    if folder.config.is_file():
        _refuse_another(folder, config)
    elif folder.path.is_dir() and any(not entry.name.startswith(".") for entry in folder.path.iterdir()):
        raise UsageError(f"{folder.path} is not empty and holds no run of offramp; choose another folder.")


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


def _refuse_another(folder: RunFolder, config: Mapping[str, Any]) -> None:
    begun = folder.read_config()
    form = begun.training.form
    if form in FORMER_FORMS:
        raise UsageError(
            f"{folder.path} was trained in form {form}, which this offramp does not have: it can be evaluated, but not "
            "trained further. Choose another folder."
        )
    lines = differences(determining(begun.values), determining(config))
    if lines:
        raise UsageError(
            f"{folder.path} holds a run of another configuration ({'; '.join(lines)}). Choose another folder, or the "
            "same configuration to continue."
        )
