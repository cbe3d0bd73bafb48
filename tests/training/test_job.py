from pathlib import Path

import numpy as np
import torch
from torch import nn

from offramp import data
from offramp.config import Spec, TrainConfig
from offramp.network import EarlyExitNet
from offramp.objectives import PowerSqrt, build, dynamic
from offramp.rules import Standard
from offramp.training.job import Job


def job(**more: object) -> Job:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 1, 4, 4)).astype(np.uint8)
    parts = data.arrays(pixels, np.arange(50) % 2, holdout=6)
    network = EarlyExitNet([nn.Flatten()], [nn.Sequential(nn.Dropout(), nn.Linear(16, 3))], damping=True)
    values = {"network": network, "objective": PowerSqrt(), "train": parts.train, "val": parts.val}
    return Job(**{**values, "config": TrainConfig(), "rule": Standard(), **more})


def test_checking_leaves_no_trace() -> None:
    checked = job()
    before = {name: value.clone() for name, value in checked.network.state_dict().items()}
    state = torch.get_rng_state()
    checked.check()
    assert checked.network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in checked.network.state_dict().items())


def test_equal_jobs_have_equal_descriptions_and_others_do_not() -> None:
    assert job().describe() == job().describe()
    assert job(objective=dynamic()).describe() != job().describe()
    assert job(config=TrainConfig(lr=0.2)).describe() != job().describe()
    assert build(Spec.from_json(job(objective=dynamic()).describe()["objective"])) == dynamic()


def test_the_introduction_says_what_is_trained_on_what() -> None:
    line = job(objective=dynamic()).introduction(torch.device("cpu"))
    assert line.startswith(
        "dynamic on arrays (34 for train, 3 for search, 3 for certify; 1 x 4 x 4), 1 exits, 51 param"
    )


def test_weights_of_a_file_take_the_place_of_the_hubs_and_so_does_their_licence(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    hub = {"model": "resnet18", "weights": "hub", "licence": "apache-2.0"}
    given = job()
    given.network.origin = hub
    assert given.origin() == hub
    read = job(network=given.network, config=TrainConfig(init=str(file))).origin()
    assert read.pop("init")["file"] == "weights.pth"
    assert read == {"model": "resnet18", "weights": None, "licence": None}
