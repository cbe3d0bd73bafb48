"""`offramp import`."""

import json
from pathlib import Path

import pytest
import torch

from offramp.backbones import msdnet
from offramp.backbones.originals import original_names
from offramp.cli import main
from offramp.commands.import_ import ImportOptions
from offramp.config import Spec
from offramp.errors import OfframpError, UsageError
from offramp.files import load_weights
from offramp.network import EarlyExitNet, rebuild
from offramp.storage import load_tensors

PRESET = ["msdnet", "exits=2", "channels=4", "growth=2", "head_channels=8", "num_classes=3"]


def checkpoint(path: Path, network: EarlyExitNet) -> Path:
    names = original_names(network)
    state = {f"module.{names[here]}": tensor for here, tensor in network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("damping", [False, True])
def test_imported_weights_are_a_network_of_ours(
    damping: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = msdnet(exits=2, channels=4, growth=2, head_channels=8, num_classes=3, damping=damping)
    network(torch.rand(4, 3, 32, 32))  # so that running statistics are something
    file, out = checkpoint(tmp_path / "c.pth.tar", network), tmp_path / "sub" / "weights.safetensors"
    flags = ["--damping"] if damping else []
    assert main(["import", str(file), "--preset", *PRESET, "--out", str(out), *flags]) == 0
    assert "2 exits" in capsys.readouterr().out
    tensors, metadata = load_tensors(out)
    assert metadata["source"] == "c.pth.tar"
    again = rebuild(Spec.from_json(json.loads(metadata["network"])))
    load_weights(again, tensors, out)
    images = torch.rand(2, 3, 32, 32)
    assert again.damping == damping
    assert torch.equal(again.eval()(images), network.eval()(images))


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    file, out = checkpoint(tmp_path / "c.pth.tar", msdnet(exits=1)), tmp_path / "weights.safetensors"
    with pytest.raises(UsageError, match="does not fit this network"):
        ImportOptions(file, preset=Spec("msdnet7-cifar100"), out=out).main()
    with pytest.raises(UsageError, match="There is no file"):
        ImportOptions(tmp_path / "absent", preset=Spec("msdnet7-cifar100"), out=out).main()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OfframpError, match="cannot be read as a checkpoint"):
        ImportOptions(file, preset=Spec("msdnet7-cifar100"), out=out).main()
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "c.pth.tar", msdnet(exits=1))
    (tmp_path / "file").touch()
    with pytest.raises(OfframpError, match=r"file/weights.safetensors cannot be written: "):
        ImportOptions(file, preset=Spec("msdnet", {"exits": 1}), out=tmp_path / "file" / "weights.safetensors").main()
    with pytest.raises(OfframpError, match="cannot be written: Is a directory"):
        ImportOptions(file, preset=Spec("msdnet", {"exits": 1}), out=tmp_path).main()


def test_without_a_place_the_weights_stand_beside_the_checkpoint(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model_best.pth.tar", msdnet(exits=1, channels=4, growth=2, head_channels=8))
    ImportOptions(file, preset=Spec("msdnet", {"exits": 1, "channels": 4, "growth": 2, "head_channels": 8})).main()
    assert (tmp_path / "model_best.safetensors").is_file()
