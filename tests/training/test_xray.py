"""What is written down of watched images, beside a plain record of every step. K exits, W watched images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp import data, rules
from offramp.config import TrainConfig
from offramp.data import Batch, Parts
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.files.xray import Xray
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, Objective, PowerSqrt, Terms, dynamic
from offramp.rules import Outcome, TrainingRule
from offramp.rules.cgt import CGT
from offramp.rules.wpn import WPN
from offramp.storage import load_tensors

WATCHED = 11
QUICK = TrainConfig(epochs=3, lr=0.05, xray=WATCHED)


def images(num: int = 60, **more: Any) -> Parts:
    """Two classes told apart by brightness, 8 x 8 pixels."""
    labels = np.arange(num) % 2
    noise = np.random.default_rng(0).integers(0, 100, (num, 1, 8, 8))
    pixels = (noise + 150 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return data.arrays(pixels, labels, **({"batch_size": 16, "holdout": 10} | more))


def network(damping: bool = True) -> EarlyExitNet:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
    ]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(width, 2 + damping)) for width in (36, 4)]
    return EarlyExitNet(stages, exits, damping=damping)


class Overheard(TrainingRule):
    """Another rule, of which every batch and outcome is kept."""

    def __init__(self, rule: TrainingRule) -> None:
        self.rule = rule
        self.heard: list[tuple[Batch, Outcome]] = []

    def set_up(self) -> None:
        self.rule.prepare(self.bench)

    def step(self, batch: Batch, progress: float) -> Outcome:
        outcome = self.rule.step(batch, progress)
        self.heard.append((batch, outcome))
        return outcome


def trained(out: Path, objective: Objective, rule: TrainingRule, **more: Any) -> Overheard:
    overheard, parts = Overheard(rule), images()
    net = network(damping=objective.damping_neuron == "required")
    config = dataclasses.replace(QUICK, **more)
    offramp.fit(net, objective, parts.train, parts.val, config, out=out, rule=overheard)
    return overheard


def in_order(heard: list[tuple[Batch, Outcome]], values: Callable[[Batch, Outcome], Tensor], xray: Xray) -> Tensor:
    """Of each epoch the values `[K, B]` of the watched images, in the order of the record, one at a time."""
    steps = len(heard) // len(xray.epochs_E)
    epochs = []
    for e in range(len(xray.epochs_E)):
        found = {}
        for batch, outcome in heard[e * steps : (e + 1) * steps]:
            for b, index in enumerate(batch.indices_B.tolist()):
                found[index] = values(batch, outcome)[:, b]
        epochs.append(torch.stack([found[index] for index in xray.indices_W.tolist()], dim=1))
    return torch.stack(epochs)


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        (CrossEntropy(), rules.Standard()),
        (PowerSqrt(0.3), rules.Standard()),
        (dynamic(strength=0.3), CGT()),
        (PowerSqrt(0.3), WPN(hidden=4)),
    ],
    ids=["without the neuron", "gamma", "weights of a rule", "half batches"],
)
def test_the_record_is_what_the_steps_left(objective: Objective, rule: TrainingRule, tmp_path: Path) -> None:
    heard = trained(tmp_path, objective, rule).heard
    xray = Xray.load(RunFolder(tmp_path).xray)
    parts = images()
    assert xray.epochs_E.tolist() == [1, 2, 3]
    assert len(xray.indices_W) == WATCHED
    assert sorted(set(xray.indices_W.tolist())) == xray.indices_W.tolist()
    assert set(xray.indices_W.tolist()) < set(parts.train.indices_S.tolist())
    labels = dict(zip(parts.train.indices_S.tolist(), parts.train.labels_S.tolist(), strict=True))
    assert xray.targets_W.tolist() == [labels[index] for index in xray.indices_W.tolist()]
    assert (xray.class_names, xray.split) == (parts.train.class_names, parts.train.name)

    def cross_entropy(batch: Batch, outcome: Outcome) -> Tensor:
        return -outcome.logits_KBC.log_softmax(-1)[:, torch.arange(len(batch.targets_B)), batch.targets_B]

    def right(batch: Batch, outcome: Outcome) -> Tensor:
        return outcome.logits_KBC[..., :2].argmax(-1) == batch.targets_B

    def push(batch: Batch, outcome: Outcome) -> Tensor:
        true_KB = (-cross_entropy(batch, outcome)).exp()
        return 1 - true_KB - outcome.stats_KB.get("gamma", torch.zeros(())) * true_KB

    torch.testing.assert_close(xray.ce_EKW.float(), in_order(heard, cross_entropy, xray), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(xray.push_EKW.float(), in_order(heard, push, xray), rtol=1e-3, atol=1e-6)
    assert torch.equal(xray.right_EKW, in_order(heard, right, xray))
    for name, recorded in (("gamma", xray.gamma_EKW), ("weight", xray.weight_EKW)):
        if name in heard[0][1].stats_KB:
            expected = in_order(heard, lambda _, outcome, name=name: outcome.stats_KB[name], xray)
            torch.testing.assert_close(recorded.float(), expected, rtol=1e-3, atol=1e-7)
        else:
            assert recorded is None


def test_watching_changes_nothing_else_and_is_off_by_default(tmp_path: Path) -> None:
    for name, xray in (("without", 0), ("with", WATCHED)):
        trained(tmp_path / name, PowerSqrt(), rules.Standard(), xray=xray)
    without, watched = (RunFolder(tmp_path / name) for name in ("without", "with"))
    assert TrainConfig().xray == 0
    assert not without.xray.exists()
    assert without.weights.read_bytes() == watched.weights.read_bytes()
    assert without.metrics.read_bytes() == watched.metrics.read_bytes()


def test_all_runs_on_the_same_images_watch_the_same(tmp_path: Path) -> None:
    for name, more in (("a", {}), ("b", {"seed": 3, "epochs": 2}), ("all", {"xray": 2000})):
        trained(tmp_path / name, PowerSqrt(), rules.Standard(), **more)
    a, b, everything = (Xray.load(tmp_path / name / "xray.safetensors") for name in ("a", "b", "all"))
    assert torch.equal(a.indices_W, b.indices_W)
    assert everything.indices_W.tolist() == sorted(images().train.indices_S.tolist())


def test_the_file_is_as_small_as_it_says(tmp_path: Path) -> None:
    trained(tmp_path, PowerSqrt(), rules.Standard(), xray=40, epochs=6)
    size = RunFolder(tmp_path).xray.stat().st_size
    assert 9 * 6 * 2 * 40 < size < 9 * 6 * 2 * 40 + 2048 + 16 * 40


def fitting(tmp_path: Path, **more: Any) -> Callable[[str], object]:
    def fit(out: str) -> object:
        parts, config = images(), dataclasses.replace(QUICK, save_every_steps=2, **more)
        return offramp.fit(network(), dynamic(), parts.train, parts.val, config, out=tmp_path / out)

    return fit


@pytest.mark.parametrize("at", [3, 4, 5, 6, 9])
def test_an_interrupted_run_ends_with_the_same_record(
    at: int, tmp_path: Path, interrupted: Callable[..., RunFolder]
) -> None:
    """Three steps an epoch, a checkpoint after every second of the run: the plug is pulled at any place."""
    calm = interrupted(fitting(tmp_path), rules.Standard, "step", at, checkpoint=True)
    assert calm.xray.read_bytes() == (tmp_path / "resumed" / "xray.safetensors").read_bytes()


def test_the_file_is_there_again_where_the_plug_was_pulled_before_it_was_written(
    tmp_path: Path, interrupted: Callable[..., RunFolder]
) -> None:
    calm = interrupted(fitting(tmp_path), Xray, "save", 3)
    assert calm.xray.read_bytes() == (tmp_path / "resumed" / "xray.safetensors").read_bytes()


class StopError(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class StopsAt(PowerSqrt):
    """Power-sqrt that fails from some progress on, unless the file `go` is there."""

    progress: float = 0.0
    go: str = ""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        if progress >= self.progress and not Path(self.go).exists():
            raise StopError
        return super().terms(logits_KBC, targets_B, progress=progress)


@pytest.mark.parametrize(("before", "after", "epochs"), [(0, WATCHED, [3]), (WATCHED, 0, [1, 2, 3]), (5, 9, [1, 2, 3])])
def test_switched_on_later_it_begins_with_a_whole_epoch_and_once_on_it_goes_on(
    before: int, after: int, epochs: list[int], tmp_path: Path
) -> None:
    """Continued in the middle of the second epoch: of that one not all images were seen."""
    objective = StopsAt(progress=0.5, go=str(tmp_path / "go"))

    def fit(xray: int) -> None:
        parts, config = images(), dataclasses.replace(QUICK, save_every_steps=1, xray=xray)
        offramp.fit(network(), objective, parts.train, parts.val, config, out=tmp_path / "run")

    with pytest.raises(StopError):
        fit(before)
    (tmp_path / "go").touch()
    fit(after)
    xray = Xray.load(tmp_path / "run" / "xray.safetensors")
    assert xray.epochs_E.tolist() == epochs
    assert len(xray.indices_W) == (before or after)


def test_numbers_beyond_float16_are_cut(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Huge(CrossEntropy):
        def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
            plain = super().terms(logits_KBC, targets_B)
            huge_KB = torch.full_like(plain.loss_KB, 1e9).detach()
            return Terms(plain.loss_KB, {**plain.stats_KB, "gamma": huge_KB, "weight": -huge_KB})

    trained(tmp_path, Huge(), rules.Standard(), epochs=1)
    xray = Xray.load(RunFolder(tmp_path).xray)
    assert set(xray.gamma_EKW.flatten().tolist()) == {65504.0}
    assert set(xray.weight_EKW.flatten().tolist()) == {-65504.0}


def test_where_nothing_is_watched_checkpoints_hold_nothing_of_it(tmp_path: Path) -> None:
    trained(tmp_path, PowerSqrt(), rules.Standard(), xray=0)
    names = load_tensors(sorted(RunFolder(tmp_path).checkpoints.iterdir())[-1])[0]
    assert not any(name.startswith("xray") for name in names)


def test_two_processes_keep_one_record_and_it_is_that_of_one_process(tmp_path: Path, together) -> None:
    for number in (1, 2):
        together(number, Path(__file__).with_name("watched_run.py"), tmp_path / str(number))
    one, two = (Xray.load(tmp_path / name / "xray.safetensors") for name in "12")
    assert two.epochs_E.tolist() == one.epochs_E.tolist() == [1, 2]
    assert torch.equal(one.indices_W, two.indices_W)
    for name in ("ce_EKW", "push_EKW", "gamma_EKW", "weight_EKW"):
        ours, theirs = (getattr(xray, name).float() for xray in (one, two))
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)
    assert torch.equal(one.right_EKW, two.right_EKW)


@pytest.mark.parametrize("number", [-1, 2.5, True, 2049])
def test_what_cannot_be_watched_is_refused(number: Any) -> None:
    with pytest.raises(UsageError, match="xray"):
        TrainConfig(xray=number)
