import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from offramp import export
from offramp.errors import UsageError
from offramp.export import Stages, packages
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Policy


def logits_by(load, stages: Stages, images_BCHW: torch.Tensor) -> torch.Tensor:
    given, logits = {"images": images_BCHW}, []
    for stage, leaves in zip(stages.stages, stages.exits, strict=True):
        outputs = load(stages.folder / stage.file)(*(given[name] for name in stage.inputs))
        given = dict(zip(stage.outputs, outputs if isinstance(outputs, tuple | list) else [outputs], strict=True))
        made = load(stages.folder / leaves.file)(given[stage.outputs[leaves.reads]])
        logits.append(made if isinstance(made, torch.Tensor) else made[0])
    return torch.stack(logits)


def test_packages_run_in_turn_give_the_logits_of_the_network(trained, tmp_path, capfd) -> None:
    one = trained("by hand", True)
    policy = Policy((0.5, 0.5, EVERYBODY))
    stages = export.torch_packages(one.network, tmp_path / "packages", policy=policy)
    assert capfd.readouterr() == ("", "")
    assert Stages.load(stages.folder).stages == stages.stages
    modules = {file: torch.export.load(file).module() for file in stages.folder.glob("*.pt2")}
    assert len(modules) == 6
    for rows in (0, 1, 2, 33):
        found = logits_by(modules.__getitem__, stages, one.images_SCHW[:rows])
        torch.testing.assert_close(found, one.logits_KSC[:, :rows], rtol=0, atol=1e-5)


class _Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_named_and_nothing_is_written(tmp_path, capfd) -> None:
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2)]
    network = EarlyExitNet([nn.Identity(), _Deciding()], heads, image_shape=(1, 4, 4))
    with pytest.raises(UsageError, match=r"^Stage 2 .*: its control flow .* \(module _Deciding\)"):
        export.torch_packages(network, tmp_path / "packages")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_nothing_is_compiled(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"a C\+\+ compiler is needed"):
        export.torch_packages(trained("by hand", True).network, tmp_path / "packages", compiled=True)


def test_what_cannot_be_compiled_is_named_in_one_line_and_nothing_is_written(tmp_path, monkeypatch, capfd) -> None:
    named = []

    def compile(program, package_path: str) -> str:
        named.append(program)
        print("the compiler has much to say")
        if len(named) == 2:
            raise RuntimeError("no kernel for it\nand many more lines")
        Path(package_path).write_bytes(b"")
        return package_path

    monkeypatch.setattr(packages, "_need_compiler", lambda: None)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile)
    network = EarlyExitNet([nn.Identity()], [nn.Sequential(nn.Flatten(), nn.Linear(16, 3))], image_shape=(1, 4, 4))
    with pytest.raises(UsageError, match=r"^Exit 1 cannot be compiled ahead of time: no kernel for it$"):
        export.torch_packages(network, tmp_path / "packages", compiled=True)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_compiled_packages_give_the_logits_of_the_network(tmp_path, capfd) -> None:
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3)]
    network = EarlyExitNet(stages, heads, image_shape=(1, 16, 16))
    written = export.torch_packages(network, tmp_path / "packages", compiled=True)
    assert capfd.readouterr() == ("", "")
    modules = {file: torch._inductor.aoti_load_package(str(file)) for file in written.folder.glob("*.pt2")}
    for rows in (1, 2, 33):
        images_BCHW = torch.randn(rows, 1, 16, 16)
        found = logits_by(modules.__getitem__, written, images_BCHW)
        torch.testing.assert_close(found, network(images_BCHW), rtol=0, atol=1e-5)
