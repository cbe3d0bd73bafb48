import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from offramp import data
from offramp.cli import main
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.data import files
from offramp.errors import OfframpError, UsageError
from offramp.training import train
from offramp.training.loop import Loop

TINY = {"exits": 2, "channels": 4, "growth": 2, "growth_factors": (1, 2), "bottleneck_factors": (1, 2)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders in train and test, 24 and 4 images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part, count in (("train", 12), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                shade = torch.full((3, 32, 32), 40 + 150 * label + i, dtype=torch.uint8)
                write_png(shade, str(tmp_path / "images" / part / name / f"{i:02}.png"))
    return tmp_path / "images"


def run_on(folder: Path, **training: object) -> Run:
    source = Spec(f"folder:{folder}", {"image_size": 16})
    config = TrainConfig(epochs=1, device="cpu", **training)  # type: ignore[arg-type]
    return Run(data=DataConfig(source=source, batch_size=8), network=Spec("msdnet", TINY), training=config)


@pytest.mark.usefixtures("undrawn")
def test_all_bad_files_are_named_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    """A broken image of the test part was found when the training was over, and its removal ended the run."""
    bad = [folder / "test" / "dog" / "01.png", folder / "train" / "cat" / "03.png", folder / "train" / "dog" / "07.png"]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:50])
    bad[2].write_bytes(b"no image")
    with pytest.raises(OfframpError, match=r"3 image files cannot be used:") as error:
        train(run_on(folder), tmp_path / "run")
    assert [sum(str(file) in line for line in str(error.value).splitlines()) for file in bad] == [1, 1, 1]
    assert "--skip-unreadable" in str(error.value)
    assert not (tmp_path / "run").exists()
    for file in bad:
        file.unlink()
    train(run_on(folder), tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run")]) == 0


@pytest.mark.usefixtures("undrawn")
def test_unreadable_files_are_left_out_on_request_and_the_run_says_which(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [folder / "test" / "dog" / "01.png", folder / "train" / "cat" / "03.png", folder / "train" / "dog" / "x.bmp"]
    for file in bad:
        file.write_bytes(b"no image")
    options = ["--network", *map(str, Spec("msdnet", TINY).words()), "--epochs", "1", "--device", "cpu"]
    command = ["train", "--data", f"folder:{folder}", "image_size=16", *options, "--out", str(tmp_path / "run")]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert all(str(file) in said for file in bad)
    assert not (tmp_path / "run").exists()

    command.append("--skip-unreadable")
    assert main(command) == 0
    assert "3 image files are left out" in capsys.readouterr().err
    recorded = json.loads((tmp_path / "run" / "split.json").read_text())["left_out"]
    assert all(any(str(file) in line for line in recorded) for file in bad)
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3
    for file in bad:  # gone or left out is the same
        file.unlink()
    assert main(command) == 0
    assert "finished" in capsys.readouterr().err


def test_a_class_of_which_nothing_can_be_read_is_named(folder: Path) -> None:
    for file in (folder / "train" / "cat").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(OfframpError, match="cat holds no image that can be read"):
        data.folder(folder, skip_unreadable=True)


def test_a_long_list_is_cut(folder: Path, tmp_path: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(OfframpError, match=r"28 image files .*(\n.*){20}\n  and 8 more\n"):
        train(run_on(folder), tmp_path / "run")


def test_each_file_is_looked_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    decode = files.decode

    def counted(path: Path, max_megapixels: float) -> torch.Tensor:
        looked.append(path)
        return decode(path, max_megapixels)

    def begun(name: str) -> int:
        """Files decoded before the first step."""
        looked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(files, "decode", counted)
            patch.setattr(Loop, "run", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(run_on(folder), tmp_path / name)
        return len(looked)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    assert begun("first") == 28
    assert begun("second") == 0
    (folder / "train" / "cat" / "03.png").touch()
    assert 0 < begun("third") < 28


@pytest.mark.parametrize("where", [".", "train/cat", "test", "val/new", "link"])
def test_a_run_among_the_images_is_refused(folder: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "link").symlink_to(folder)
    out = tmp_path / "link" / "run" if where == "link" else folder / where / "run"
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=r"lies in .*images, the folder of the images.* Choose a folder outside"):
        train(run_on(folder), out)
    assert sorted(folder.rglob("*")) == before


def test_without_augmentation_a_thin_image_is_one_of_the_bad(folder: Path, tmp_path: Path) -> None:
    write_png(torch.zeros(3, 1, 2000, dtype=torch.uint8), str(folder / "train" / "cat" / "03.png"))
    with pytest.raises(OfframpError, match="too thin"):
        train(run_on(folder, augment=False), tmp_path / "run")


def test_a_cache_that_cannot_be_written_is_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for set_up in _places(tmp_path, monkeypatch):
        set_up()
        assert train(run_on(folder), tmp_path / "run").num_exits == 2


def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def homeless() -> None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", nobody)

    return [lambda: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file")), homeless]


def test_size_and_scratch_are_said_of_few_photos(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_on(folder)
    data_alone = DataConfig(source=Spec(f"folder:{folder}"), batch_size=8)
    own_size = dataclasses.replace(whole, data=data_alone, network=Spec("auto"))
    train(own_size, tmp_path / "run")
    said = capsys.readouterr().err
    assert "32 x 32 pixels: the median of their shorter sides is 32" in said
    assert "from scratch on 22 images is the second best" in said
    started = dataclasses.replace(whole.training, init=str(tmp_path / "run"), epochs=2)
    train(dataclasses.replace(own_size, training=started), tmp_path / "again")
    assert "second best" not in capsys.readouterr().err
