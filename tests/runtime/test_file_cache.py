import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.runtime import file_cache


def network() -> EarlyExitNet:
    return EarlyExitNet([nn.Conv2d(1, 2, 3)], [nn.Sequential(nn.Flatten(), nn.Linear(8, 5))], image_shape=(1, 4, 4))


def test_made_once_and_found_again(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net = network().eval()
    folder = file_cache.folder_for(net)
    assert folder.parent == tmp_path / "offramp" / "onnx"
    assert file_cache.find(folder) is None
    assert file_cache.expected_seconds(net) > 0
    made = file_cache.make(net, folder)
    assert capsys.readouterr().err.startswith("Making ONNX files (once for these weights on this machine")
    assert made == file_cache.find(folder)
    assert file_cache.expected_seconds(net) == 0
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]
    saved = shutil.copytree(folder, tmp_path / "saved")
    monkeypatch.setattr(
        "offramp.export.stages", lambda network, to: shutil.copytree(saved, to)
    )  # traced once is enough
    (folder / "stage-1.onnx").unlink()
    assert file_cache.find(folder) is None
    assert file_cache.make(net, folder) == made  # in the place of what is damaged


class Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


def traced(by: float) -> nn.Module:
    return torch.fx.symbolic_trace(Scaled(by))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: nn.init.ones_(net.exits[0][1].weight),
        lambda net: setattr(net, "image_shape", (1, 5, 5)),
        lambda net: setattr(net, "reads", (0,)),
        lambda net: net.stages.append(nn.ReLU()),
        lambda net: setattr(net.stages[0], "stride", (2, 2)),
        lambda net: setattr(net.stages[1], "by", 3.0),
        lambda net: net.stages.__setitem__(2, traced(3.0)),
    ],
    ids=["weights", "images", "reads", "modules", "torch's own", "a setting", "a trace"],
)
def test_what_computes_something_else_has_another_place(change) -> None:
    net = network()
    net.stages.extend([Scaled(2.0), traced(2.0)])
    place = file_cache.folder_for(net)
    assert file_cache.folder_for(net.train()) == place == file_cache.folder_for(net.eval())
    change(net)
    assert file_cache.folder_for(net) != place


def test_the_networks_used_last_are_kept(tmp_path) -> None:
    for age in range(12):
        (tmp_path / str(age)).mkdir()
        os.utime(tmp_path / str(age), (1000 - age, 1000 - age))
    (tmp_path / ".being made").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")  # as if another process had just removed it
    file_cache._forget(tmp_path, 3)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".being made", "0", "1", "2", "gone"]


def test_where_nothing_can_be_kept(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    net = network()
    with pytest.raises(UsageError, match=r"cannot be kept in .*file/offramp/onnx: Not a directory; set XDG_CACHE_HOME"):
        file_cache.make(net, file_cache.folder_for(net))


def test_another_process_was_faster(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there = object()
    folder = file_cache.folder_for(network())

    def make(network, made) -> None:
        made.mkdir()

    def fail(self, target) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr("offramp.export.stages", make)
    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(file_cache, "find", lambda folder: there)
    assert file_cache.make(network(), folder) is there
    monkeypatch.setattr(file_cache, "find", lambda folder: None)
    with pytest.raises(UsageError, match=r"cannot be kept in .*: Directory not empty"):
        file_cache.make(network(), folder)


def test_nothing_is_left_of_what_could_not_be_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(network, folder):
        folder.mkdir()
        raise UsageError("it cannot")

    monkeypatch.setattr("offramp.export.stages", fail)
    folder = file_cache.folder_for(network())
    with pytest.raises(UsageError, match="it cannot"):
        file_cache.make(network(), folder)
    assert not [*folder.parent.iterdir()]
