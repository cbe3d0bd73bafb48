import os
from pathlib import Path

import pytest
import torch

from offramp.errors import OfframpError
from offramp.training.checkpoints import Checkpoint, CheckpointStore


def state(step: int) -> Checkpoint:
    return Checkpoint({"w": torch.full((40,), float(step))}, {"epoch": step, "metrics": ["{}"] * step})


def store_of(tmp_path: Path, steps: int = 3, keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(tmp_path, keep)
    for step in range(1, steps + 1):
        store.save(step, state(step))
    return store


def test_the_newest_comes_back_and_few_are_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path, steps=5, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000004.safetensors", "step-000000005.safetensors"]
    latest = store.latest(pytest.fail)
    assert latest is not None
    assert latest.values == state(5).values
    assert torch.equal(latest.tensors["w"], state(5).tensors["w"])


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", 2).latest(pytest.fail) is None


def test_a_flipped_bit_falls_back_to_the_one_before_and_says_so(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    newest = tmp_path / "step-000000003.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 64
    newest.write_bytes(content)
    notes: list[str] = []
    latest = store.latest(notes.append)
    assert latest is not None
    assert latest.values["epoch"] == 2
    assert len(notes) == 1
    assert "step-000000003" in notes[0]
    assert "Trying the checkpoint before it" in notes[0]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(OfframpError, match="Every checkpoint"):
        store.latest(lambda _: None)


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OfframpError, match=r"cannot be written: No space left.*of step 4 is lost.*step-000000003"):
            store.save(4, state(4))
    latest = store.latest(pytest.fail)
    assert latest is not None
    assert latest.values["epoch"] == 3
