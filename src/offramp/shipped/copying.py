"""A shipped network, copied to where a user can work on it."""

import hashlib
import os
import tempfile
from pathlib import Path

from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.shipped.card import CARD, Card, card, folder
from offramp.storage import sync_folder, write_atomically


def copy(name: str, path: str | Path) -> bool:
    """Copy a shipped network's folder to `path`, whole or not at all. It is a finished run, like any other.

    Returns:
        Whether it was copied. False: `path` holds it already; nothing is touched.

    Raises:
        UsageError: No network of that name ships, or `path` is not empty and holds something else.
        OfframpError: `path` cannot be written.
    """
    known, source, target = card(name), folder(name), Path(path).expanduser()
    try:
        if target.is_dir() and any(target.iterdir()):
            if _holds(target, known):
                return False
            raise UsageError(
                f"{target} is not empty and is no whole copy of the example {name}; choose a folder that does not "
                "exist yet."
            )
        if target.is_dir() and target.samefile(Path.cwd()):
            raise UsageError("The folder you are in cannot be replaced; choose one that does not exist yet.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".part") as beside:
            new = Path(beside) / target.name
            new.mkdir()
            for file in (CARD, *known.sha256):
                write_atomically(new / file, (source / file).read_bytes())
            os.replace(new, target)
        sync_folder(target.parent)
    except OSError as error:
        raise OfframpError(f"{target} cannot be written: {error.strerror or error}.") from error
    return True


def _holds(target: Path, known: Card) -> bool:
    """Whether every file of the network is there unchanged. Others may be there too: certificates, records."""
    rewritten = RunFolder(target).evaluation  # by `offramp evaluate`
    return all(
        (target / file).is_file() and hashlib.sha256((target / file).read_bytes()).hexdigest() == digest
        for file, digest in known.sha256.items()
        if target / file != rewritten
    )
