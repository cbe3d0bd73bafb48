"""The image files that a person names: files as they are, folders with all that is in them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from offramp.data.class_folders import READABLE, UNREADABLE
from offramp.errors import OfframpError, UsageError

_IMAGES = READABLE + UNREADABLE  # those that are not read are named later, not passed over


def find_images(paths: Iterable[str | Path]) -> list[str]:
    """The files named, and the images in the folders named, which are searched recursively, by name.

    In folders hidden files and folders, and files that are no images, are passed over. A file that is named is taken
    whatever it is called.
    """
    named = [os.fspath(path) for path in paths]
    missing = [path for path in named if not os.path.exists(os.path.expanduser(path))]
    if missing:
        more = f" ({len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise UsageError(f"There is no file or folder {missing[0]}{more}.")
    found: list[str] = []
    for path in map(os.path.expanduser, named):
        found += _search(path, ()) if os.path.isdir(path) else [path]
    if not found:
        where = " or ".join(named) if named else "nothing"
        raise UsageError(f"There is no image ({', '.join(READABLE)}) in {where}.")
    return found


def _search(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Links are followed, except to a folder that this one lies in (`above`, by device and number)."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for entry in ordered:
            if entry.is_dir():
                yield from _search(entry.path, (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in _IMAGES:
                yield entry.path
    except OSError as error:
        raise OfframpError(f"The folder {folder} cannot be read: {error.strerror or error}.") from error
