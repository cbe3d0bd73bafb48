"""The ONNX files of a network's stages and exits, made once on a machine and kept.

To make them takes torch's exporter seconds to a minute, to load them some milliseconds: `predict` and every program
that adopts a tuning would wait for it at each start. What is kept is never taken on trust: `Sessions` compares it with
the network before it is used, so that a name need not stand for everything that answers depend on.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch

import offramp
from offramp import export
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet
from offramp.storage import weights_hash

KEPT = 8  # networks, those used last
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # what `offramp[onnx]` installs
SECONDS = 0.05  # to make the files, for each of a network's innermost modules: measured on MSDNets, on a busy core


def there() -> bool:
    """Whether everything that makes and runs the files is installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def version() -> str | None:
    """Of onnxruntime; None where it is not installed."""
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return None


def expected_seconds(network: EarlyExitNet) -> float:
    """About how long it will take until the files are there; 0 if they are."""
    if find(place(network)) is not None:
        return 0.0
    return SECONDS * sum(1 for module in network.modules() if next(module.children(), None) is None)


def place(network: EarlyExitNet) -> Path:
    """Where a network's files are kept: under a name for its weights, its make and the versions that write them."""
    make = [str(network), str(network.spec), str(network.reads), str(network.image_shape), str(network.damping)]
    versions = [offramp.__version__, torch.__version__, *map(_version, NEEDED[:2])]
    name = hashlib.sha256("\n".join([weights_hash(network.state_dict()), *make, *versions]).encode()).hexdigest()[:24]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offramp" / "onnx" / name


def find(folder: Path) -> export.Stages | None:
    """The files made before; None where there are none, or where they are damaged."""
    try:
        found = export.Stages.load(folder)
        os.utime(folder)
    except (UsageError, OfframpError, OSError):
        return None
    return found


def make(network: EarlyExitNet, folder: Path) -> export.Stages:
    """Make the files anew, to be kept in `folder`, and forget those of networks that have not been used for longest.

    Raises:
        UsageError: The network cannot be exported, or there is nowhere to keep what is made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as aside:
            made = Path(aside) / "made"
            export.stages(network, made)
            _forget(folder.parent, KEPT - 1)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                made.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UsageError(
            f"onnxruntime's files cannot be kept in {folder.parent}: {error.strerror or error}; set XDG_CACHE_HOME."
        ) from error
    return export.Stages.load(folder)


def _forget(parent: Path, most: int) -> None:
    kept = [(one.stat().st_mtime, one) for one in parent.iterdir() if not one.name.startswith(".")]
    for _, folder in sorted(kept, reverse=True)[most:]:
        shutil.rmtree(folder, ignore_errors=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
