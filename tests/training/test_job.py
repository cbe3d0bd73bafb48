from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offramp import data
from offramp.config import Spec, TrainConfig
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import PowerSqrt, Terms, build, dynamic
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


class Odd(PowerSqrt):
    """Its shares and statistics are what `shaped` makes of them."""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        terms = super().terms(logits_KBC, targets_B, progress=progress)
        return self.shaped(terms.loss_KB, terms.stats_KB["a"])


SHAPES = {
    "mean over images": lambda loss_KB, a_KB: Terms(loss_KB.mean(1), {}),
    "kept mean": lambda loss_KB, a_KB: Terms(loss_KB.mean(1, keepdim=True), {}),
    "scalar": lambda loss_KB, a_KB: Terms(loss_KB.mean(1).sum(), {}),
    "images first": lambda loss_KB, a_KB: Terms(loss_KB.T, {}),
    "statistic": lambda loss_KB, a_KB: Terms(loss_KB, {"a": a_KB, "odd": a_KB.mean(1)}),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("K", [1, 2])
def test_terms_that_are_not_of_each_exit_and_image_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, K: int
) -> None:
    """They would be divided by the number of images once more, and train at a fraction of the rate."""
    monkeypatch.setattr(Odd, "shaped", staticmethod(SHAPES[name]), raising=False)
    exits = [nn.Linear(16, 3) for _ in range(K)]
    network = EarlyExitNet([nn.Flatten(), nn.Identity()][:K], exits, damping=True)
    said = f"Odd gives {'odd' if name == 'statistic' else 'shares of the loss'} of shape .* not \\({K}, {K + 1}\\)"
    with pytest.raises(UsageError, match=said):
        job(objective=Odd(), network=network).check()


@pytest.mark.parametrize(
    ("exits", "reads", "message"),
    [
        ([nn.Linear(16, 3)], 5, "Exit 1 reads tensor 5 of the carry, and stage 1 gives 1"),
        ([nn.Linear(16, 3)], -2, "Exit 1 reads tensor -2 of the carry"),
        (
            [nn.Linear(16, 3), nn.Unflatten(1, (4, 4))],
            -1,
            r"Exit 2 gives logits of the shape \(1, 4, 4\) for one",
        ),
        (
            [nn.Linear(16, 3), nn.Identity()],
            -1,
            r"Exit 2 .* \(1, 16\) .* not \(1, 3\) \(images, 2 classes and the",
        ),
    ],
)
def test_what_an_exit_cannot_read_or_give_is_found_before_training(
    exits: list[nn.Module], reads: int, message: str
) -> None:
    network = EarlyExitNet([nn.Flatten(), nn.Identity()][: len(exits)], exits, damping=True, reads=reads)
    with pytest.raises(UsageError, match=message):
        job(network=network).check()


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
