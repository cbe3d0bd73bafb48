"""The ONNX files of a network's stages and exits, made once on a machine and kept.

To make them takes torch's exporter seconds to a minute, to load them some milliseconds: `predict` and every program
that adopts a tuning would wait for it at each start. What is kept is never taken on trust: `LibraryProgram` compares it
with the network before it is used, so that a name need not stand for everything that answers depend on. Files in int8
are another function than the network: they are made of files that were compared, and certificates name a hash of them.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import offramp
from offramp import export
from offramp.errors import OfframpError, UsageError
from offramp.export.int8 import quantized
from offramp.network import EarlyExitNet
from offramp.runtime.timing import version
from offramp.storage import held_folder, kept_on_this_machine, weights_hash
from offramp.terminal import say

KEPT = 16  # networks, those used last; a verdict compares about a dozen
WRITERS = ("onnx", "onnxscript")  # packages that make the files
_OF_ALL = frozenset(vars(nn.Module()))  # names of what every module holds, such as its hooks
SECONDS = 0.03  # to make the files, for each innermost module: 0.025 and 0.013 on MSDNets of 177 and 1,053 of them


def expected_seconds(network: EarlyExitNet) -> float:
    """About how long it will take until the files are there; 0 if they are."""
    return 0.0 if find(folder_for(network)) is not None else _seconds(network)


def _seconds(network: EarlyExitNet) -> float:
    return SECONDS * sum(1 for module in network.modules() if next(module.children(), None) is None)


def folder_for(network: EarlyExitNet) -> Path:
    """Where a network's files are kept: under a name for its weights, its make and the versions that write them."""
    make = [f"{name} {_described(module)}" for name, module in network.named_modules()]
    versions = [offramp.__version__, torch.__version__, *(f"{version(package)}" for package in WRITERS)]
    name = hashlib.sha256("\n".join([weights_hash(network.state_dict()), *make, *versions]).encode()).hexdigest()[:24]
    return kept_on_this_machine("onnx") / name


def _described(module: nn.Module) -> str:
    """What a module computes, beside its weights: settings that are values, and the text that says what is done."""
    kind: Any = type(module)
    held, plain = vars(module), bool | int | float | str | tuple | list | None
    values = {name: held[name] for name in sorted(held.keys() - _OF_ALL) if isinstance(held[name], plain)}
    code = getattr(module, "code", "")  # what torch.fx has written
    return f"{kind.__module__} {kind.__qualname__} {values} {code} {_source(kind)}"


@functools.cache
def _source(kind: Any) -> str:
    try:
        return "" if kind.__module__.startswith("torch.nn.") else inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def find(folder: Path) -> export.Stages | None:
    """The files made before; None where there are none, or where they are damaged."""
    try:
        files = export.Stages.load(folder)
        os.utime(folder)
    except (UsageError, OfframpError, OSError):
        return None
    return files


def make(network: EarlyExitNet, folder: Path) -> export.Stages:
    """Make the files anew, to be kept in `folder`, and forget those of networks that have not been used for longest."""
    say(f"Making ONNX files (once for these weights on this machine, about {_seconds(network):.0f} s)")
    return _keep(folder, lambda new: export.stages(network, new))


def make_int8(network: EarlyExitNet, images_SCHW: Tensor) -> export.Stages:
    """Make the files in int8, of those in float32, with scales from what these make of images."""
    folder = folder_for(network)
    in_int8 = quantized(network, (find(folder) or make(network, folder)).parts(), images_SCHW)
    return _keep(_in_int8(folder), lambda new: export.stages(network, new, made=in_int8))


def find_int8(network: EarlyExitNet) -> export.Stages:
    """The files that `calibrate` made; refused where there are none."""
    files = find(_in_int8(folder_for(network)))
    if files is None:
        raise UsageError(
            "int8 needs scales, and none have been found for this network on this machine: call "
            "offramp.runtime.calibrate(network, images), or `offramp certify RUN --precision int8`, which takes the "
            "run's search images."
        )
    return files


def scales_of(files: export.Stages) -> str:
    """What the scales in files in int8 are called."""
    names = [file.file for both in zip(files.stages, files.exits, strict=True) for file in both]
    return hashlib.sha256(b"".join((files.folder / name).read_bytes() for name in names)).hexdigest()[:12]


def _in_int8(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-int8")


def _keep(folder: Path, write: Callable[[Path], object]) -> export.Stages:
    """Let files be written beside `folder`, and put them in its place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with held_folder(folder.parent, folder.name) as aside:
            new = aside / "new"
            write(new)
            _forget(folder.parent, KEPT - 1)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                new.rename(folder)
            except OSError:  # another process was faster: what it has made is as good
                there = find(folder)
                if there is None:
                    raise
                return there
    except OSError as error:
        raise UsageError(
            f"ONNX files cannot be kept in {folder.parent}: {error.strerror or error}; set XDG_CACHE_HOME."
        ) from error
    return export.Stages.load(folder)


def _forget(parent: Path, most: int) -> None:
    """Keep the folders used last, `most` of them, and those that are being made."""
    kept = []
    for entry in parent.iterdir():
        with contextlib.suppress(OSError):  # another process has just removed it
            if not entry.name.startswith("."):
                kept.append((entry.stat().st_mtime, entry))
    for _, folder in sorted(kept, reverse=True)[most:]:
        shutil.rmtree(folder, ignore_errors=True)
