"""Checkpoints: whole or not there, and verified when read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.errors import OfframpError
from offramp.storage import DamagedFileError, load_tensors, save_tensors


@dataclass(frozen=True)
class Checkpoint:
    """State of a training: tensors by name, and plain JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class CheckpointStore:
    """The last few checkpoints of one run, in one folder, named by step."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write one beside the others, then delete the oldest. Where the disk is full, the others stay as they are."""
        path = self.folder / f"step-{step:09d}.safetensors"
        try:
            save_tensors(path, checkpoint.tensors, {"values": json.dumps(checkpoint.values)})
        except OfframpError as error:
            files = self._files()
            last = f"the last good one is {files[-1]}" if files else "there is no earlier one"
            raise OfframpError(f"{error} The checkpoint of step {step} is lost; {last}.") from error
        later = [file for file in self._files() if file.name > path.name]  # damaged ones, passed over when continuing
        for file in later:
            file.unlink()
        for old in self._files()[: -self.keep]:
            old.unlink()

    def latest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest one whose content has the hash it was written with; `note` hears of damaged ones passed over."""
        files = self._files()
        for path in reversed(files):
            try:
                tensors, metadata = load_tensors(path)
            except DamagedFileError as error:
                note(f"{error} Trying the checkpoint before it.")
                continue
            return Checkpoint(tensors, json.loads(metadata["values"]))
        if files:
            raise OfframpError(f"Every checkpoint in {self.folder} is damaged. Delete the run's folder to start anew.")
        return None

    def is_empty(self) -> bool:
        """Whether nothing was saved yet."""
        return not self._files()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))
