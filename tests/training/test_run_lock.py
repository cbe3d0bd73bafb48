import json
import os
from pathlib import Path
from typing import Any

import pytest

from offramp.config import DataConfig, Spec, TrainConfig, to_json
from offramp.errors import OfframpError, UsageError
from offramp.files import FORMAT, RunFolder
from offramp.training.run_lock import locked


def config(**training: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "offramp": "0.1.0",
        "network": None,
        "objective": {"name": "cross-entropy", "args": {}},
        "data": to_json(DataConfig(source=Spec("digits"))),
        "training": to_json(TrainConfig(**training)),
    }


def saved(folder: RunFolder) -> None:
    """Make the folder that of a run of which something was saved."""
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-000000001.safetensors").touch()


def test_a_new_folder_is_made_and_explains_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    with locked(folder, config()):
        assert json.loads(folder.config.read_text()) == json.loads(json.dumps(config()))


def test_another_configuration_is_refused_with_the_most_telling_differences(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with locked(folder, config(lr=0.1)):
        saved(folder)
    before = folder.config.read_bytes()
    now = config(lr=0.2, epochs=3, momentum=0.8, weight_decay=0.0) | {"images": {"train": "0"}}
    now["objective"] = {"name": "damping", "args": {}}
    shown = (
        r"another configuration \(objective.name: 'cross-entropy' there, 'damping' now; "
        r"training.epochs: 300 there, 3 now; training.lr: 0.1 there, 0.2 now; and 2 more\).*--overwrite"
    )
    with pytest.raises(UsageError, match=shown), locked(folder, now):
        pytest.fail("entered")
    assert folder.config.read_bytes() == before


def test_a_folder_belongs_to_a_configuration_only_once_something_was_saved(tmp_path: Path) -> None:
    """A run that a broken image ended before its first checkpoint went on with no other images."""
    folder = RunFolder(tmp_path)
    with locked(folder, config() | {"images": {"train": "with the broken one"}}):
        folder.add_start({"threads": 7})
    now = config() | {"images": {"train": "without it"}}
    with locked(folder, now):
        assert folder.read_config().images == {"train": "without it"}
        assert folder.read_starts() == []
        saved(folder)
    with pytest.raises(UsageError, match="the images are others"), locked(folder, config() | {"images": {}}):
        pytest.fail("entered")


def test_overwriting_removes_the_other_run_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with locked(folder, config(lr=0.1)):
        saved(folder)
    for file in (folder.weights, folder.record("test"), folder.path / "notes.txt"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with locked(folder, config(lr=0.1), overwrite=True):
        assert folder.weights.is_file()
    with locked(folder, config(lr=0.2), overwrite=True):
        assert folder.read_config().values["training"]["lr"] == 0.2
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "config.json", "notes.txt"]


def test_only_a_run_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"debug": true}')
    with pytest.raises(UsageError, match="is not a run"), locked(RunFolder(tmp_path), config(), overwrite=True):
        pytest.fail("entered")
    (tmp_path / "config.json").rename(tmp_path / "thesis.tex")
    with pytest.raises(UsageError, match="holds no run"), locked(RunFolder(tmp_path), config(), overwrite=True):
        pytest.fail("entered")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_fields_that_change_nothing_may_differ(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with locked(folder, config(save_every_steps=5)):
        pass
    now = config(save_every_steps=7, keep_best=True) | {"offramp": "0.1.1"}
    with locked(folder, now):
        assert json.loads(folder.config.read_text())["training"]["save_every_steps"] == 7


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and holds no run"), locked(RunFolder(tmp_path), config()):
        pytest.fail("entered")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text(json.dumps(config() | {"format": FORMAT + 1}))
    with pytest.raises(UsageError, match="written by a newer offramp"), locked(folder, config()):
        pytest.fail("entered")


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with (
        locked(folder, config()),
        pytest.raises(OfframpError, match="Another process is training"),
        locked(folder, config()),
    ):
        pytest.fail("entered")


def test_a_path_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"), locked(RunFolder(tmp_path / "file" / "run"), config()):
        pytest.fail("entered")


def test_litter_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with locked(folder, config()):
        folder.checkpoints.mkdir()
    litter = folder.checkpoints / ".step-000000001.safetensors.abc.part"
    litter.touch()
    (folder.checkpoints / ".step-000000002.safetensors.abc.held.part").mkdir()
    with locked(folder, config()):
        assert not litter.exists()
        assert os.listdir(folder.checkpoints) == []
