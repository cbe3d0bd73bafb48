import os
from pathlib import Path

import pytest
import torch

from offramp.errors import OfframpError
from offramp.training.checkpoints import Checkpoint, CheckpointStore, Position


def state(step: int) -> Checkpoint:
    return Checkpoint({"w": torch.full((40,), float(step))}, Position(epoch=step, metrics=("{}",) * step))


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
    assert latest.position == state(5).position
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
    assert latest.position.epoch == 2
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
    assert latest.position.epoch == 3


def test_what_is_no_file_is_passed_over_and_left_alone(tmp_path: Path) -> None:
    """A pipe must not be waited for."""
    store = store_of(tmp_path)
    (tmp_path / "step-000000004.safetensors").mkdir()
    os.mkfifo(tmp_path / "step-000000005.safetensors")
    (tmp_path / "step-000000006.safetensors").symlink_to(tmp_path / "nowhere")
    notes: list[str] = []
    latest = store.latest(notes.append)
    assert latest is not None
    assert latest.position.epoch == 3
    assert [note.split(" is no file")[0][-13] for note in notes] == ["6", "5", "4"]
    store.save(4 + 3, state(7))
    assert (tmp_path / "step-000000004.safetensors").is_dir()
    again = store.latest(pytest.fail)
    assert again is not None
    assert again.position.epoch == 7


def test_nothing_but_what_is_no_file_is_no_fresh_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step-000000005.safetensors")
    store = CheckpointStore(tmp_path, 2)
    assert not store.is_empty()
    with pytest.raises(OfframpError, match="Every checkpoint"):
        store.latest(lambda _: None)


@pytest.mark.parametrize("what", ["a file", "a pipe", "a dangling link", "permission denied"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    if what == "a file":
        folder.touch()
    elif what == "a pipe":
        os.mkfifo(folder)
    elif what == "a dangling link":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        folder.mkdir()

        def refuse(path: Path) -> list[str]:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "listdir", refuse)  # root may read everything
    with pytest.raises(OfframpError, match=r"checkpoints cannot be read: "):
        CheckpointStore(folder, 2).is_empty()


def test_checkpoints_of_another_run_are_passed_over_and_never_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    for step, run in ((1, "ours"), (2, "theirs"), (3, None)):
        store.save(step, Checkpoint({"network.w": torch.ones(2)}, Position(run=run, epoch=step)))
    notes: list[str] = []
    latest = store.latest(notes.append, lambda run: run == "ours")
    assert latest is not None
    assert latest.position.epoch == 1
    assert [note.count("of another run") for note in notes] == [1, 1]
    with pytest.raises(OfframpError, match=r"damaged, or of another run"):
        store.latest(notes.append, lambda run: run == "nobody's")


def test_a_checkpoint_that_is_not_finite_is_passed_over(tmp_path: Path) -> None:
    """As an older version left it."""
    store = CheckpointStore(tmp_path, 3)
    for step, value in ((1, 1.0), (2, float("nan"))):
        store.save(step, Checkpoint({"network.w": torch.tensor([0.0, value])}, Position(epoch=step)))
    notes: list[str] = []
    latest = store.latest(notes.append)
    assert latest is not None
    assert latest.position.epoch == 1
    assert "not finite (network.w)" in notes[0]
