"""Single bits flipped in files of a run, and what reads them: noticed in one line, or the same content.

`READERS` by file: what reads it, whole. `prepare(folder)` makes the run. `flips(...)` gives places; `failure(...)` says
what went wrong with one, or nothing.
"""

import contextlib
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import offramp
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.policy import Policy
from offramp.storage import load_tensors
from offramp.training.checkpoints import CheckpointStore

sys.path.append(str(Path(__file__).parents[1]))
from hostile import files

NEWEST = "newest checkpoint"


def prepare(folder: Path) -> Path:
    """A run with checkpoints, weights, records and a policy with a certificate."""
    return files.prepare(folder, quickly=True)


def path_of(run: Path, file: str) -> Path:
    """Where a file of `READERS` is."""
    return max((run / "checkpoints").iterdir()) if file == NEWEST else run / file


def _newest(run: Path) -> Any:
    """What training would continue with, and whether something was passed over for it."""
    notes: list[str] = []
    checkpoint = CheckpointStore(run / "checkpoints", keep=2).latest(notes.append, RunFolder(run).owns)
    assert checkpoint is not None
    assert all("\n" not in note for note in notes)
    return (checkpoint.tensors, checkpoint.values), bool(notes)


READERS: dict[str, Callable[[Path], Any]] = {
    NEWEST: _newest,
    "weights.safetensors": lambda run: dict(offramp.load(run).state_dict()),
    "records/test.safetensors": lambda run: load_tensors(run / "records/test.safetensors"),
    "xray.safetensors": lambda run: load_tensors(run / "xray.safetensors"),
    "policy.json": lambda run: Policy.load(run / "policy.json"),
}
SHARES = {NEWEST: 300, "weights.safetensors": 300, "records/test.safetensors": 200, "xray.safetensors": 100}
SHARES["policy.json"] = 100  # 1,000 together


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same: tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def flips(content: bytes, file: str, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Places, byte and bit: of safetensors files a third in the header, which is a small part of them."""
    numbers = random.Random(f"{file} {seed}")
    header = 8 + struct.unpack("<Q", content[:8])[0] if file != "policy.json" else len(content)
    for number in range(count):
        yield numbers.randrange(header if number % 3 == 0 else len(content)), numbers.randrange(8)


def failure(run: Path, file: str, byte: int, bit: int, good: Any) -> str:
    """What went wrong when a file with that bit flipped was read; `good` is what `READERS` gave before."""
    path = path_of(run, file)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[byte] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        found = READERS[file](run)
    except (OfframpError, UsageError) as error:
        return "" if "\n" not in str(error) else f"said: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        path.write_bytes(content)
    if equal(found, good):
        return ""
    if file == NEWEST and found[1]:
        path.unlink()
        try:  # noticed, and the one before it taken
            return "" if equal(found[0], READERS[file](run)[0]) else "another checkpoint than the one before it"
        finally:
            path.write_bytes(content)
    return "other content, and no word"


class _EqualToAll:
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


@contextlib.contextmanager
def without_hashes() -> Iterator[None]:
    """While this lasts no hash is compared: a control."""
    with (
        mock.patch("offramp.storage._content_hash", return_value=_EqualToAll()),
        mock.patch("offramp.policy._content_hash", return_value=_EqualToAll()),
    ):
        yield
