"""What cannot be exported says why, in one line; nothing else is said."""

import sys

import pytest
import torch
from torch import Tensor, nn

from offramp import export
from offramp.errors import UsageError
from offramp.network import EarlyExitNet


class _Lacking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


class _Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _Lengthening(nn.Module):
    """A carry that gets a tensor by an `if` on shapes, which is no obstacle, and passes another on."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x, x.relu()) if x.shape[-1] == 8 else (x, x)


def _net(second: nn.Module, reads: int = -1) -> EarlyExitNet:
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)) for _ in range(2)]
    return EarlyExitNet([nn.Conv2d(1, 3, 1), second], heads, image_shape=(1, 8, 8), reads=reads)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (_Lacking(), r"^Stage 2 uses the operator aten\._linalg_svd, which ONNX lacks\."),
        (
            nn.Sequential(nn.Identity(), _Deciding()),
            r"^Stage 2 cannot be traced: its control flow .* on values \(module 1, _Deciding\). .* torch.where.$",
        ),
    ],
)
def test_a_part_that_cannot_be_is_named_in_one_line(second, says, capfd) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        export.parts(_net(second))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("write", [export.parts, export.stages, export.torch_packages])
def test_an_exit_that_changes_later_answers_is_refused(write, tmp_path) -> None:
    network = _net(nn.Conv2d(3, 3, 1))
    network.exits[0].insert(0, nn.ReLU(inplace=True))
    with pytest.raises(UsageError, match=r"^Exit 1 writes into a map that stage 2 reads \(in place\)"):
        write(network, *([] if write is export.parts else [tmp_path / "files"]))
    assert not (tmp_path / "files").exists()


def test_what_can_be_is_made_in_silence_and_the_network_stays_as_it_is(capfd) -> None:
    network = _net(_Lengthening()).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    split = export.parts(network)
    assert capfd.readouterr() == ("", "")
    assert split.stages[1].outputs == ("carry_2_0", "carry_2_1")
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_a_package_it_is_named(package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}, which is not installed: pip install 'offramp\[onnx\]'"):
        export.parts(_net(nn.Identity()))
