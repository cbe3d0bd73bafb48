"""Checkpoints: whole or not there, and verified when read."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from offramp.errors import OfframpError
from offramp.json_files import convert, parse
from offramp.storage import DamagedFileError, load_tensors, save_tensors
from offramp.training.diagnosis import not_finite


class SumsSoFar(TypedDict):
    """Of the epoch that is going on: images so far, and names of the objective's statistics."""

    images: int
    names: list[str]


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training stands."""

    run: str | None = None  # whose it is: `RunFolder.identity`; None: an older offramp wrote none
    epoch: int  # finished ones
    step: int = 0  # finished ones of the epoch that is going on
    sums: SumsSoFar = field(default_factory=lambda: SumsSoFar(images=0, names=[]))  # of that epoch
    metrics: tuple[str, ...] = ()  # the lines of `metrics.jsonl`
    best: float = -1.0  # mean accuracy on `search`, in percent


@dataclass(frozen=True)
class Checkpoint:
    """State of a training: tensors by name, and where it stands."""

    tensors: dict[str, Tensor]
    position: Position


class CheckpointStore:
    """The last few checkpoints of one run, in one folder, named by step."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write one beside the others, then delete the oldest. Where the disk is full, the others stay as they are."""
        path = self.folder / f"step-{step:09d}.safetensors"
        try:
            save_tensors(path, checkpoint.tensors, {"values": json.dumps(asdict(checkpoint.position))})
        except OfframpError as error:
            newest = self.newest()
            last = f"the last good one is {newest}" if newest else "there is no earlier one"
            raise OfframpError(f"{error} The checkpoint of step {step} is lost; {last}.") from error
        files = self._files()
        later = [file for file in files if file.name > path.name]  # passed over when continuing
        for file in (*later, *[file for file in files if file not in later][: -self.keep]):
            file.unlink()

    def latest(self, note: Callable[[str], None], owns: Callable[[Any], bool] = lambda _: True) -> Checkpoint | None:
        """The newest one that can be used; None where there is none at all. None that can be used is an error.

        `note` gets a message for each that is passed over: no file, damaged, not finite, or of another run, which
        `owns` says of the identity that it carries.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                if not path.is_file():
                    raise DamagedFileError(f"{path} is no file.")
                tensors, metadata = load_tensors(path)
                position = convert(parse(metadata.get("values", "null"), path), Position, path)
                if not owns(position.run):
                    raise DamagedFileError(f"{path} is of another run; the next checkpoint removes it.")
                if (name := not_finite(_trained(tensors))) is not None:
                    raise DamagedFileError(f"{path} holds numbers that are not finite ({name}).")
            except DamagedFileError as error:
                note(f"{error} Trying the checkpoint before it.")
                continue
            return Checkpoint(tensors, position)
        if paths:
            raise OfframpError(
                f"Every checkpoint in {self.folder} is damaged, or of another run. Put back one of this run, or delete "
                "the run's folder to start anew."
            )
        return None

    def is_empty(self) -> bool:
        """Whether nothing was saved yet."""
        return not self._paths()

    def newest(self) -> Path | None:
        """The file of the newest one, whatever it holds."""
        return max(self._files(), default=None)

    def _files(self) -> list[Path]:
        """Those that are files; a folder or a pipe of such a name is not ours to delete."""
        return [path for path in self._paths() if path.is_file()]

    def _paths(self) -> list[Path]:
        """All that has the name of a checkpoint, by step. A folder that cannot be read is no empty one."""
        if not os.path.lexists(self.folder):
            return []
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise OfframpError(
                f"The checkpoints in {self.folder} cannot be read: {error.strerror or error}. Mend it, or train into "
                "another folder."
            ) from error
        return [self.folder / name for name in sorted(names) if fnmatch(name, "step-*.safetensors")]


def _trained(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What training goes on with, not what it has written down."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("sums.", "xray."))}
