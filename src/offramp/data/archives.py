"""Files of published data sets: where they lie, whether they are whole, and their download where there is a network."""

import contextlib
import hashlib
import http.client
import os
from pathlib import Path

from offramp.errors import OfframpError


def root_folder(root: str | Path | None) -> Path:
    """The folder with the data sets' files: `root`, else $OFFRAMP_DATA, else ~/.cache/offramp."""
    return Path(root or os.environ.get("OFFRAMP_DATA") or "~/.cache/offramp").expanduser()


def check(content: bytes, md5: str, path: Path, way_out: str) -> bytes:
    """What stands in the file at `path`, if it is the published file, byte for byte; else it is refused."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise OfframpError(
            f"{path} is damaged, not fully downloaded, or another file (MD5 {digest}, expected {md5}). {way_out}"
        )
    return content


def download(url: str, target: Path, md5: str) -> None:
    """Fetch `target`: to a name of this process's own first, renamed once its checksum is right."""
    from torchvision.datasets.utils import download_url  # slow to import, for the one run that downloads

    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    new_folders = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    try:
        download_url(url, target.parent, partial.name, md5)
        partial.replace(target)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # no network; checksum wrong; cut off
        half = next(target.parent.glob(f"{target.name}*.part"), None) if not partial.exists() else None
        left = f" ({half.name} there is a download that did not finish.)" if half else ""
        raise OfframpError(
            f"{target.name} is not in {target.parent} and could not be downloaded: {error}. "
            f"Fetch {url} and put it there, or name the folder that has it with root.{left}"
        ) from error
    finally:
        if partial.is_file():
            partial.unlink()
        if not target.exists():
            for folder in new_folders:
                with contextlib.suppress(OSError):  # not there, or no longer empty
                    folder.rmdir()
