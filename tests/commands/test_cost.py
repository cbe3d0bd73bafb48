"""`offramp cost`."""

import json
from pathlib import Path
from typing import Any

import pytest

from offramp import backbones
from offramp.cli import main
from offramp.commands.cost import CostOptions, cost
from offramp.config import Spec
from offramp.errors import UsageError


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["cost", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_is_cumulative_per_exit(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "msdnet7-cifar100")
    assert [e["operations"] for e in found["exits"]][::6] == [6859876, 137280956]
    assert found["exits"][-1] == {"operations": 137280956, "multiply_adds": 136565248, "parameters": 3966664}
    assert found["path"][-1]["operations"] == 111601508
    assert found["path"][-1]["parameters"] == 1623664
    assert sum(part["operations"] for part in found["stages"] + found["heads"]) == 137280956
    assert found["image_shape"] == [3, 32, 32]


def test_damping_and_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "ranet6-cifar100", "--damping")
    assert [e["parameters"] for e in found["exits"]] == [358789, 900138, 1305382, 1801227, 2188838, 2618035]
    small = printed(
        capsys, "msdnet", "exits=2", "growth_factors=1,2", "--image-shape", "1", "16", "16", "--num-classes", "10"
    )
    assert (len(small["exits"]), small["image_shape"]) == (2, [1, 16, 16])
    assert printed(capsys, "auto", "--image-shape", "1", "16", "16")["image_shape"] == [1, 16, 16]


def test_the_table_shows_every_exit_and_stage(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["cost", "msdnet5-batch-cifar100"]) == 0
    table = capsys.readouterr().out
    assert all(number in table for number in ("6,859,876", "58,480,628", "2,078,924"))
    assert "counts, not latencies" in table
    assert max(len(line) for line in table.splitlines()) <= 80


def run_folder(path: Path, network: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(
        json.dumps(
            {
                "format": 1,
                "network": network,
                "data": None,
                "objective": {"name": "damping", "args": {}},
                "training": {},
            }
        )
    )
    return path


def test_the_network_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network = backbones.msdnet(exits=1, growth_factors=(1,), image_size=8, num_classes=4)
    assert network.spec is not None
    run = run_folder(tmp_path / "run", network.spec.to_json())
    found = printed(capsys, str(run))
    assert [e["parameters"] for e in found["exits"]] == [sum(p.numel() for p in network.parameters())]
    with pytest.raises(UsageError, match="its network is what it is"):
        cost(CostOptions(Spec(str(run)), damping=True))


def test_a_run_is_counted_for_the_images_that_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network = backbones.msdnet(exits=1, growth_factors=(1,), image_size=8, num_classes=4)
    assert network.spec is not None
    run = str(run_folder(tmp_path / "run", network.spec.to_json()))
    whole, named = printed(capsys, run), printed(capsys, run, "--image-shape", "3", "12", "12")
    assert (whole["image_shape"], named["image_shape"]) == ([3, 8, 8], [3, 12, 12])
    assert named["exits"][0]["operations"] > whole["exits"][0]["operations"]
    with pytest.raises(UsageError, match=r"run cannot run on images of shape \(3, 64, 64\): .*shapes"):
        cost(CostOptions(Spec(run), image_shape=(3, 64, 64)))


def test_runs_that_cannot_be_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was built by hand"):
        cost(CostOptions(Spec(str(run_folder(tmp_path / "hand", None)))))
    with pytest.raises(UsageError, match="is not a run"):
        cost(CostOptions(Spec(str(tmp_path))))


def test_unknown_names_and_missing_images_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean msdnet7-cifar10"):
        cost(CostOptions(Spec("msdnet7-cifar1")))
    with pytest.raises(UsageError, match="name a preset"):
        cost(CostOptions(Spec("auto")))
