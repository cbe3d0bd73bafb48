"""`offramp import`."""

import json
from pathlib import Path

import pytest
import torch
import tyro

from offramp.backbones import msdnet
from offramp.backbones.originals import original_names
from offramp.cli.import_ import import_
from offramp.config import Spec
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet, rebuild
from offramp.runs import load_weights
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
    tyro.cli(import_, args=[str(file), "--preset", *PRESET, "--out", str(out), *flags])
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
    with pytest.raises(UsageError, match="is not a checkpoint of this network"):
        import_(file, preset=Spec("msdnet7-cifar100"), out=out)
    with pytest.raises(UsageError, match="There is no file"):
        import_(tmp_path / "absent", preset=Spec("msdnet7-cifar100"), out=out)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OfframpError, match="cannot be read as a checkpoint"):
        import_(file, preset=Spec("msdnet7-cifar100"), out=out)
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "c.pth.tar", msdnet(exits=1))
    (tmp_path / "file").touch()
    with pytest.raises(OfframpError, match=r"file/weights.safetensors cannot be written: "):
        import_(file, preset=Spec("msdnet", {"exits": 1}), out=tmp_path / "file" / "weights.safetensors")
    with pytest.raises(OfframpError, match="cannot be written: Is a directory"):
        import_(file, preset=Spec("msdnet", {"exits": 1}), out=tmp_path)


def test_without_a_place_the_weights_stand_beside_the_checkpoint(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model_best.pth.tar", msdnet(exits=1, channels=4, growth=2, head_channels=8))
    import_(file, preset=Spec("msdnet", {"exits": 1, "channels": 4, "growth": 2, "head_channels": 8}))
    assert (tmp_path / "model_best.safetensors").is_file()
