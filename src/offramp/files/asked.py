"""What a finished run was asked for: `asked.json`. With it the same command ends before torch is loaded.

A run's `config.json` holds what the names and the images became, which takes building both. Here stands what the user
asked, and hashes of what it gave. Whenever one of them is another, the long way decides.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import offramp
from offramp.config import Run, determining, to_json
from offramp.errors import OfframpError, UsageError
from offramp.files.folder import RunFolder
from offramp.json_files import read, write

_CLASS_FOLDERS = 2  # folders below that of the images: train or test, then the classes


@dataclass(frozen=True)
class Asked:
    """What was asked, by which version, and what there was of files when the run was finished."""

    offramp: str
    run: Mapping[str, Any]  # all that determines it, as it was asked for
    files: Mapping[str, str]  # SHA-256 by name
    home: str | None = None  # the folder of the images; None where they cannot change
    images: str | None = None  # a hash of the names, sizes and times of the files in it


def keep_asked(folder: RunFolder, run: Run, home: Path | None) -> None:
    """Write down that the finished run in `folder` is what `run` asks for; nothing where code of users is in it."""
    if _all_registered(run):
        write(folder.asked, asdict(_asked(folder, run, home)))


def is_finished(folder: RunFolder, run: Run) -> bool:
    """Whether `run` is known to be finished in `folder`. False: it is to be found out by building it."""
    try:
        before = read(folder.asked, Asked)
        now = _asked(folder, run, None if before.home is None else Path(before.home))
    except (OfframpError, UsageError, OSError):
        return False
    return _all_registered(run) and before == now


def _all_registered(run: Run) -> bool:
    """A user's own code may have changed without its name."""
    specs = (run.network, run.objective, run.rule)
    data = run.data.source.name
    return not any(":" in spec.name for spec in specs) and (":" not in data or data.startswith("folder:"))


def _asked(folder: RunFolder, run: Run, home: Path | None) -> Asked:
    files = {path.name: _digest(path) for path in (folder.config, folder.weights)}
    images = None if home is None else hashlib.sha256(repr(list(_statuses(home))).encode()).hexdigest()
    return Asked(offramp.__version__, determining(to_json(run)), files, None if home is None else str(home), images)


def _digest(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _statuses(home: Path) -> Iterator[tuple[str, int, int]]:
    for place, folders, names in os.walk(home, followlinks=True):
        if len(Path(place).relative_to(home).parts) >= _CLASS_FOLDERS:
            folders.clear()
        folders.sort()
        for name in sorted(names):
            status = os.stat(os.path.join(place, name))
            yield os.path.join(place, name), status.st_size, status.st_mtime_ns
