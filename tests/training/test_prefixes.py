"""The smaller networks of a verdict: where they start, how they are trained, and which folders are none of theirs."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from offramp import data
from offramp.backbones.attached import zoo
from offramp.backbones.prefix import shortened
from offramp.config import Spec, TrainConfig, to_json
from offramp.errors import UsageError
from offramp.files import RunConfig, RunFolder, load
from offramp.files.kinds import Training
from offramp.json_files import convert
from offramp.network import EarlyExitNet
from offramp.rules import DFS, Standard
from offramp.training.prefixes import Prefixes

fit = importlib.import_module("offramp.training.fit")


# -- how they are trained ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "rule", "kept", "neuron", "says"),
    [
        ("power-sqrt", "standard", "CrossEntropy", False, "damps an exit for the sake of the others"),
        ("label-smoothing", "dfs", "LabelSmoothing", False, "rule DFS is for several exits"),
        ("cross-entropy", "standard", "CrossEntropy", False, "2 epochs"),
    ],
)
def test_they_are_trained_as_the_run_but_for_what_is_for_several_exits(
    objective: str, rule: str, kept: str, neuron: bool, says: str, tmp_path: Path, run_of, prefixes
) -> None:
    run = run_of(tmp_path / "run", objective, rule, xray=8, weight_decay=0.01)
    made = prefixes(run)
    network = made.train(1, 0)
    config = RunFolder(run / "verdict" / "prefix-1").read_config()
    assert config.objective.name.endswith(f":{kept}")
    assert config.rule.name.endswith(":Standard")
    assert network.damping is neuron
    whole = RunFolder(run).read_config()
    assert config.data == whole.data
    assert config.images == whole.images
    assert {**config.values["training"], "xray": 8} == whole.values["training"]
    assert any(says in sentence for sentence in made.description())


def test_they_start_from_the_random_weights_of_the_run(
    run: Path, run_of, tmp_path: Path, monkeypatch, prefixes
) -> None:
    """Also where the run has the damping neuron and they have not: its row of the exit is all that is missing."""
    began: list[EarlyExitNet] = []
    with monkeypatch.context() as patch:
        patch.setattr(fit, "fit", lambda network, *args, **settings: began.append(network) or network)
        patch.setattr(fit, "keep_asked", lambda *_: None)
        run_of(tmp_path / "never")
    made = prefixes(run)
    assert made.network.damping
    for exit in (1, 2):
        same_but_for_the_neuron(made.built(exit, 0), shortened(began[0], exit))
    other = made.built(1, 1).state_dict()
    assert any(not torch.equal(other[name], own) for name, own in made.built(1, 0).state_dict().items())


def same_but_for_the_neuron(given: EarlyExitNet, wanted: EarlyExitNet) -> None:
    assert (given.damping, wanted.damping) == (False, True)
    tensors = wanted.state_dict()
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, tensors[name][: len(tensor)] if tensor.shape[:1] == (10,) else tensors[name])


def test_they_start_from_the_weights_that_the_run_was_given(
    run: Path, judged_once: Path, tmp_path: Path, prefixes
) -> None:
    """Without the damping neuron, as from random ones; and from no others."""
    made = given_weights(run, judged_once, tmp_path, prefixes)
    same_but_for_the_neuron(made.built(1, 0), shortened(load(judged_once), 1))
    assert made.training.init is None
    assert any("start from the weights" in sentence for sentence in made.description())
    made.network.origin = {"init": {"file": "run/weights.safetensors", "sha256": "0" * 64}}
    with pytest.raises(UsageError, match=r"holds other weights now, so .* give --no-train"):
        made.built(1, 0)
    with pytest.raises(UsageError, match=r"cannot be read now, so .* give --no-train"):
        given_weights(run, tmp_path / "nowhere.safetensors", tmp_path, prefixes).built(1, 0)


def given_weights(run: Path, init: Path, runs: Path, prefixes) -> Prefixes:
    return Prefixes(RunFolder(run), load(run), with_changes(run, {"init": str(init)}), prefixes(run).parts, runs)


def with_changes(run: Path, training: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    config = RunFolder(run).read_config()
    values = {**config.values, **changes, "training": {**config.values["training"], **(training or {})}}
    return dataclasses.replace(convert(values, RunConfig, run), values=values)


class Tiny(nn.Module):
    """A library's model: with the hub's weights they are all 0.5."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2, 10)
        if pretrained:
            for parameter in self.parameters():
                nn.init.constant_(parameter, 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.more(self.conv(images))).flatten(1))


def test_they_start_from_the_hubs_weights_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    """A run's recipe asks no hub; what is trained as the run was has to, a frozen trunk above all."""
    is_reached = True

    def model(name: str, *, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained and not is_reached:
            raise ConnectionError("There is no hub.\nMore of it.")
        return Tiny(pretrained=pretrained)

    monkeypatch.setattr(zoo, "named_model", model)
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"at": ["conv"], "num_classes": 10, "in_channels": 1, "image_size": 8}
    whole = zoo.settled("torchvision/resnet18", pretrained=True, **arguments)
    assert whole.spec is not None
    training = to_json(TrainConfig(freeze_trunk=True))
    values = {"training": training}
    config = RunConfig(1, None, whole.spec, Spec("cross-entropy"), Training(), values=values)
    made = Prefixes(
        RunFolder(tmp_path),
        whole,
        config,
        data.arrays(*[np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10] * 2),
        tmp_path,
    )
    given, wanted = made.built(1, 0), shortened(whole, 1).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in given.state_dict().items())
    assert given.origin is not None
    assert given.origin["weights"] == "hub"
    assert given.spec is not None
    assert given.spec.args["base"]["args"]["pretrained"] is False  # nor does a smaller network that is finished
    assert any("the pretrained weights" in sentence for sentence in made.description())
    is_reached = False
    with pytest.raises(
        UsageError, match=r"of torchvision/resnet18, .* \(There is no hub\), .* give --no-train"
    ) as caught:
        made.train(1, 0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_rule_of_somebodys_own_is_kept(run: Path, prefixes) -> None:
    class Mine(Standard):
        pass

    config = RunFolder(run).read_config()
    for name, kind in ((f"{__name__}:Known", Known), (f"{DFS.__module__}:DFS", Standard)):
        changed = dataclasses.replace(config, rule=Spec(name))
        assert type(dataclasses.replace(prefixes(run), config=changed).rule) is kind


class Known(Standard):
    """A rule outside the package."""


# -- whose folder it is ------------------------------------------------------------------------------------------------


def test_a_smaller_network_trained_in_another_way(run: Path, prefixes) -> None:
    """Finished or only begun, it is none of this run's, whatever the difference."""
    made = prefixes(run)
    made.train(1, 0)
    folder = made.folder(1, 0)
    assert made.finished(1, 0) is not None
    mine = {"name": f"{__name__}:Known", "args": {}}
    for changed, says in (
        ({"training": {"epochs": 3}}, "training.epochs: 2 there, 3 now"),
        ({"training": {"lr": 0.1}}, "training.lr: 0.05 there, 0.1 now"),
        ({"training": {"seed": 4}}, "training.seed: 0 there, 4 now"),
        ({"training": {"init": "a.pth"}}, "origin.init: None there, {'file': 'a.pth'"),
        ({"objective": Spec("label-smoothing").to_json()}, "objective.name: .*CrossEntropy' there"),
        ({"rule": mine}, "rule.name: .*Standard' there"),
    ):
        other = dataclasses.replace(made, config=with_changes(run, **changed))
        with pytest.raises(UsageError, match=f"trained as the run was .*{says}.*: name another folder with --runs"):
            other.finished(1, other.seed)
    free = dataclasses.replace(made, config=with_changes(run, training={"keep_checkpoints": 5}))
    assert free.finished(1, 0) is not None
    folder.weights.unlink()
    assert other.finished(1, 0) is None
    made.network.origin = {"weights": "hub"}
    with pytest.raises(UsageError, match=r"origin.weights: None there, 'hub' now"):
        made.train(1, 0)


def test_the_estimate_counts_what_is_left(run: Path, prefixes) -> None:
    made = prefixes(run)
    both = made.seconds([(1, 0), (2, 0)])
    assert both > 0
    made.train(1, 0)
    assert made.seconds([(1, 0)]) == 0
