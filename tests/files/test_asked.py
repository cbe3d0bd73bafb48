"""Whether a run is known to be finished: only as long as nothing that it was made of or gave has changed."""

from pathlib import Path

import pytest

import offramp
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.files import RunFolder, is_finished, keep_asked
from offramp.json_files import write

ASKED = Run(training=TrainConfig(epochs=2))


def finished(path: Path, run: Run = ASKED, home: Path | None = None) -> RunFolder:
    folder = RunFolder(path)
    write(folder.config, {"format": 2})
    folder.weights.write_bytes(b"weights")
    keep_asked(folder, run, home)
    return folder


def test_settings_that_change_nothing_may_be_others(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert is_finished(folder, ASKED)
    assert is_finished(folder, Run(training=TrainConfig(epochs=2, keep_checkpoints=9)))
    assert not is_finished(folder, Run(training=TrainConfig(epochs=3)))
    assert not is_finished(folder, Run(training=TrainConfig(epochs=2), network=Spec("auto", {"exits": 2})))


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "asked.json"])
@pytest.mark.parametrize("content", [b"damaged", None])
def test_a_file_that_is_damaged_or_gone_leaves_it_to_the_long_way(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    folder = finished(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert not is_finished(folder, ASKED)


def test_so_does_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(tmp_path)
    monkeypatch.setattr(offramp, "__version__", "99")
    assert not is_finished(folder, ASKED)


def test_so_does_code_of_users(tmp_path: Path) -> None:
    """It may have changed without its name."""
    for run in (Run(network=Spec("mine:net")), Run(data=DataConfig(source=Spec("mine:data")))):
        assert not is_finished(finished(tmp_path, run), run)


def test_so_does_an_image_that_changed_came_or_went(tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", Run(data=DataConfig(source=Spec(f"folder:{tmp_path / 'photos'}")))
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/2.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"image")
    for change in (
        lambda: (photos / "train/cat/1.png").write_bytes(b"another"),
        lambda: (photos / "test/cat/3.png").write_bytes(b"image"),
        lambda: (photos / "train/dog/1.png").unlink(),
        lambda: photos.rename(tmp_path / "elsewhere"),
    ):
        folder = finished(tmp_path / "run", run, photos)
        assert is_finished(folder, run)
        change()
        assert not is_finished(folder, run)
