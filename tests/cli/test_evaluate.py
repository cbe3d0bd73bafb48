import json

import numpy as np
import pytest
from torch import nn

from offramp import data
from offramp.cli import main
from offramp.network import EarlyExitNet, builder
from offramp.storage import save_tensors


@builder
def tiny_network(damping: bool = True) -> EarlyExitNet:
    stages = [nn.Conv2d(channels, 3, 3, padding=1) for channels in (1, 3)]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(48, 3 + damping)) for _ in stages]
    return EarlyExitNet(stages, exits, num_classes=3, damping=damping, image_shape=(1, 4, 4))


def tiny_data() -> data.Parts:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    return data.arrays(images, np.arange(60) % 3, batch_size=8, holdout=6)


@pytest.fixture
def run(tmp_path):
    network = tiny_network()
    config = {
        "format": 1,
        "offramp": "0.1.0",
        "data": {"source": {"name": f"{__name__}:tiny_data", "args": {}}},
        "network": network.spec.to_json(),
        "objective": {"name": "offramp.objectives.damping:Damping", "args": {"strength": 0.005}},
        "rule": {"name": "offramp.rules.standard:Standard", "args": {}},
        "training": {"epochs": 1, "seed": 0},
    }
    save_tensors(tmp_path / "run" / "weights.safetensors", network.state_dict())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def test_json_is_one_object_on_standard_output_and_notes_go_elsewhere(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    values = json.loads(captured.out)
    assert values == json.loads((run / "evaluation.json").read_text())
    assert len(values["exits"]) == 2
    for exit in values["exits"]:
        assert all(isinstance(exit[key], float) for key in ("top1", "nll", "ece", "damping"))
        assert all(isinstance(exit[key], int) for key in ("operations", "parameters"))
    assert values["mean_top1"] == pytest.approx(sum(exit["top1"] for exit in values["exits"]) / 2)
    assert captured.err.splitlines() == [str(run / "evaluation.json"), str(run / "report.html")]


def test_otherwise_a_table_and_where_the_files_lie(run, capsys):
    assert main(["evaluate", str(run), "--plots", "svg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("top-1 %" in line and "F[N+1] train" in line for line in lines)
    plots = ("accuracy", "dynamic", "reliability", "damping")
    names = ["evaluation.json", "report.html", *(f"plots/{n}.svg" for n in plots)]
    assert lines[-6:] == [str(run / name) for name in names]
    assert all((run / name).is_file() for name in names)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_table_and_json_still_work(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    captured = capsys.readouterr()
    assert "top-1 %" in captured.out
    assert captured.err == "No report.html: plots need matplotlib: pip install 'offramp[report]'\n"
    assert main(["evaluate", str(run), "--plots", "png"]) == 2
