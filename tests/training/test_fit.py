import dataclasses
import hashlib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp import data, objectives
from offramp.config import TrainConfig
from offramp.data import Batch, Parts
from offramp.data.randomness import Purpose, hashes
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Promise
from offramp.evaluation.promises import images_needed
from offramp.files import RunFolder
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, Damping, Objective, PowerSqrt
from offramp.objectives.base import Terms
from offramp.rules import Outcome, TrainingRule
from offramp.storage import load_tensors, save_tensors
from offramp.training.fit import _optimizer


def images(num: int = 60, **more: Any) -> Parts:
    """Two classes told apart by brightness, 8 x 8 pixels."""
    labels = np.arange(num) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (num, 1, 8, 8)).astype(np.uint8) + (150 * labels).astype(
        np.uint8
    ).reshape(-1, 1, 1, 1)
    return data.arrays(pixels, labels, **({"batch_size": 16, "holdout": 10} | more))


def network(damping: bool = False) -> EarlyExitNet:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
    ]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(width, 2 + damping)) for width in (36, 4)]
    return EarlyExitNet(stages, exits, damping=damping)


def forgetful() -> EarlyExitNet:
    """Says it has a damping neuron, and its exits lack one, which is not seen before they run."""
    plain = network()
    exits = [nn.Sequential(head, nn.Identity()) for head in plain.exits]
    return EarlyExitNet(plain.stages, exits, num_classes=2, damping=True)


QUICK = TrainConfig(epochs=3, lr=0.05)


def test_a_run_explains_itself_and_gives_the_network_back(tmp_path: Path) -> None:
    parts = images()
    trained = offramp.fit(network(True), PowerSqrt(), parts.train, parts.val, QUICK, out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = folder.read_metrics()
    assert [line.epoch for line in lines] == [1, 2, 3]
    assert lines[-1].step == 3 * parts.train.num_batches
    assert lines[-1].search_top1 == (100.0, 100.0)
    assert lines[-1].loss < lines[0].loss
    assert lines[-1].stats.keys() == {"F_true", "F_damping", "a", "gamma", "weight", "off_or_reversed"}
    assert not {"seconds", "time", "date"} & json.loads(folder.metrics.read_text().splitlines()[0]).keys()
    assert len(folder.timing.read_text().splitlines()) == 3
    start = json.loads(folder.environment.read_text())[0]
    assert {"torch", "offramp", "threads", "git", "command", "device"} <= start.keys()
    held_out = json.loads(folder.split.read_text())
    assert held_out["search"] == parts.val.search.indices_S.tolist()
    again = offramp.load(folder.path, into=network(True))
    some = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(some), trained(some))


def test_a_run_keeps_how_a_file_becomes_its_input(tmp_path: Path) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    folder = RunFolder(tmp_path)
    assert data.Inputs.load(folder.input) == parts.test.inputs()
    before = {path: path.read_bytes() for path in (folder.config, folder.metrics, folder.weights, folder.input)}
    # As a run is that was begun before there was such a file, and stopped before its end.
    folder.input.unlink()
    folder.weights.unlink()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_where_files_have_no_way_in_the_run_says_nothing_of_it(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).normal(size=(60, 1, 8, 8))
    parts = data.arrays(floats, np.arange(60) % 2, holdout=10)
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, TrainConfig(epochs=1), out=tmp_path)
    assert RunFolder(tmp_path).weights.is_file()
    assert not RunFolder(tmp_path).input.exists()


def test_a_finished_run_says_so_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    assert "is finished; nothing to do" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_training_that_exploded_ends_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0)
    pixels, labels = noise.integers(0, 256, (200, 1, 8, 8), dtype=np.uint8), noise.integers(0, 2, 200)
    parts, wild = data.arrays(pixels, labels, batch_size=16, holdout=0), TrainConfig(epochs=2, lr=20.0)
    offramp.fit(network(), CrossEntropy(), parts.train, None, wild, out=tmp_path / "wild")
    said = capsys.readouterr().err
    assert "Warning: the training has exploded" in said
    assert "lower --lr than 20" in said
    assert "Done" not in said
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / "tame")
    said = capsys.readouterr().err
    assert "Warning" not in said
    assert "Done" in said


@pytest.mark.parametrize(
    ("num", "holdout", "words"),
    [
        (60, 10, "5 images are held out for certificates, too few .* needs 299: it takes more images."),
        (1600, 10, "5 images are held out .* needs 299: --holdout 598 would do."),
        (1600, 598, None),
        (60, 0, None),
    ],
)
def test_too_few_images_for_a_certificate_are_said_when_the_training_starts(
    num: int, holdout: int, words: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = images(num, holdout=holdout, batch_size=512)
    config = dataclasses.replace(QUICK, epochs=1)
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val if holdout else None, config, out=tmp_path / "run")
    said = capsys.readouterr().err
    assert re.search(words, said) if words else "for certificates" not in said
    assert images_needed(Promise()) == 299


def test_a_second_run_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        parts = images()
        offramp.fit(
            network(),
            CrossEntropy(),
            parts.train,
            parts.val,
            dataclasses.replace(QUICK, seed=seed),
            out=tmp_path / name,
        )
    weights = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in "abc"}
    metrics = {name: (tmp_path / name / "metrics.jsonl").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    assert metrics["a"] == metrics["b"] != metrics["c"]


def test_without_held_out_images_the_training_images_are_watched(tmp_path: Path) -> None:
    parts = images(holdout=0)
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    line = RunFolder(tmp_path).read_metrics()[-1]
    assert line.search_top1 is None
    assert len(line.train_top1) == 2


@dataclasses.dataclass(frozen=True)
class Poisoned(Objective):
    """Cross-entropy that is nan at one exit, for one image, from some progress on."""

    exit: int
    kind: str

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        loss_KB = CrossEntropy().terms(logits_KBC, targets_B).loss_KB
        if progress < 0.5:
            return Terms(loss_KB, {})
        poison_KB = torch.zeros_like(loss_KB)
        if self.kind == "loss":
            poison_KB[self.exit, 3] = float("nan")
            return Terms(loss_KB + poison_KB, {})
        scaled_B = logits_KBC[self.exit, :, 0] * 1e30
        steep_B = (scaled_B - scaled_B.detach()) * 1e30  # value 0, gradient beyond float32
        return Terms(loss_KB + torch.stack([steep_B if k == self.exit else poison_KB[k] for k in range(2)]), {})


@pytest.mark.parametrize(
    ("kind", "words"),
    [("loss", r"exit 2, images \d+: the loss"), ("gradient", "exit 2: the loss is finite, its gradient is not")],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_is_traced(tmp_path: Path, kind: str, words: str) -> None:
    parts = images()
    net = network()
    config = dataclasses.replace(QUICK, epochs=4)
    with pytest.raises(OfframpError, match=rf"step {2 * parts.train.num_batches + 1} \(epoch 3\): {words}"):
        offramp.fit(net, Poisoned(1, kind), parts.train, parts.val, config, out=tmp_path)
    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    tensors, _ = load_tensors(last)
    assert all(torch.equal(p, tensors[f"network.{name}"]) for name, p in net.named_parameters())
    assert not (tmp_path / "weights.safetensors").exists()


def test_init_takes_weights_of_a_run_and_widens_them_for_the_neuron(tmp_path: Path) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / "first")
    frozen = TrainConfig(epochs=1, lr=0.0, weight_decay=0.0, init=str(tmp_path / "first"))
    second = offramp.fit(network(True), PowerSqrt(), parts.train, parts.val, frozen, out=tmp_path / "second")
    first = offramp.load(tmp_path / "first", into=network())
    for own, before in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(own[: len(before)], before)


def attached() -> EarlyExitNet:
    """Exits on a model of three layers, under the names that they have there."""
    stages = [nn.Sequential(OrderedDict(first=nn.Conv2d(1, 4, 3, 2), norm=nn.BatchNorm2d(4), relu=nn.ReLU()))]
    stages += [nn.Sequential(OrderedDict(second=nn.Conv2d(4, 4, 3)))]
    flat = nn.Flatten()
    return EarlyExitNet(
        stages, [nn.Sequential(flat, nn.Linear(36, 2)), nn.Sequential(OrderedDict(flat=flat, fc=nn.Linear(4, 2)))]
    )


def test_a_run_keeps_where_its_weights_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, path = images(), tmp_path / "original.pth"
    given = attached()
    own = {n: v for n, v in given.state_dict().items() if not n.startswith("exits.0.")}
    torch.save({"state_dict": {name.split(".", 2)[2]: value for name, value in own.items()}}, path)
    made = attached()
    made.origin = {"model": "somebody/net", "licence": "apache-2.0", "weights": "mypackage 0.1"}
    config = dataclasses.replace(QUICK, init=str(path), freeze_trunk=True, save_every_steps=2)
    offramp.fit(made, CrossEntropy(), parts.train, parts.val, config, out=tmp_path / "run")
    said = capsys.readouterr().err
    assert "From original.pth: trunk and last exit; the other exits start fresh." in said
    assert "(trunk: somebody/net, apache-2.0)" in said
    folder = RunFolder(tmp_path / "run")
    init = {"file": "original.pth", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert json.loads(folder.origin.read_text()) == made.origin | {"init": init}
    loaded = offramp.load(folder.path, into=attached())
    assert all(torch.equal(loaded.state_dict()[n], v) for n, v in own.items() if n.startswith("stages."))
    assert loaded.origin == made.origin | {"init": init}
    # Continued without the file: what is known stays.
    before = folder.origin.read_bytes(), folder.metrics.read_bytes()
    folder.weights.unlink()
    sorted(folder.checkpoints.iterdir())[-1].unlink()
    path.unlink()
    offramp.fit(attached(), CrossEntropy(), parts.train, parts.val, config, out=folder.path)
    assert (folder.origin.read_bytes(), folder.metrics.read_bytes()) == before


def test_a_licence_of_the_hub_is_not_that_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, path = images(), tmp_path / "own.safetensors"
    save_tensors(path, network().state_dict())
    made = network()
    made.origin = {"model": "timm/net", "licence": "apache-2.0", "weights": "hub"}
    config = dataclasses.replace(QUICK, epochs=1, init=str(path))
    offramp.fit(made, CrossEntropy(), parts.train, parts.val, config, out=tmp_path / "run")
    assert "(trunk: timm/net)" in capsys.readouterr().err
    found = json.loads(RunFolder(tmp_path / "run").origin.read_text())
    assert (found["weights"], found["licence"], found["init"]["file"]) == (None, None, path.name)


def test_weights_of_a_run_are_named_by_its_folder_and_unknown_origins_by_nothing(tmp_path: Path) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / "first")
    assert not RunFolder(tmp_path / "first").origin.exists()
    config = dataclasses.replace(QUICK, init=str(tmp_path / "first"), trunk_lr=0.1)
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / "second")
    found = json.loads(RunFolder(tmp_path / "second").origin.read_text())
    assert found["init"]["file"] == "first/weights.safetensors"
    (first,) = found["ancestors"]
    assert (first["through"], first["run"], first["data"]) == ("init", "first", None)
    held = {part.name.rpartition("/")[2]: part.fingerprint() for part in (parts.train, *parts.val.splits())}
    assert first["images"] == held
    assert first["division"] == {key: parts.val.division[key] for key in first["division"]}


def test_threads_are_as_before_when_it_returns(tmp_path: Path) -> None:
    parts, config, before = images(), TrainConfig(epochs=1, threads=2), torch.get_num_threads()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_starts()[0].threads == 2
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="needs the damping neuron"):
        offramp.fit(network(), PowerSqrt(), parts.train, parts.val, config, out=tmp_path / "refused")
    assert torch.get_num_threads() == before


def test_half_of_the_held_out_images_is_not_taken_for_all(tmp_path: Path) -> None:
    parts = images()
    with pytest.raises(UsageError, match=r"not arrays/search alone: pass val, or None"):
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val.search, QUICK, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": PowerSqrt()}, "damping neuron"),
        ({"network": EarlyExitNet([nn.Identity()], [nn.Linear(4, 3)])}, "tells 3 classes apart"),
        ({"config": TrainConfig(epochs=1, init="/no/such/file.safetensors")}, "There is no file"),
        ({"config": TrainConfig(epochs=1, init="runs/typo")}, r"There is no file or run runs/typo\."),
        ({"config": TrainConfig(epochs=1, init=__file__)}, "offramp import"),
        ({"config": TrainConfig(epochs=1, device="cuda:7")}, "no CUDA GPU"),
        ({"config": TrainConfig(epochs=1, device="abacus")}, "There is no device 'abacus'"),
        ({"objective": Damping((0.1, 0.2, 0.3)), "network": network(True)}, "3 values for 2 exits"),
        ({"network": forgetful(), "objective": PowerSqrt()}, r"Exit 1 .* \(1, 2\) for one image, not \(1, 3\)"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    parts = images()
    arguments = {"network": network(), "objective": CrossEntropy(), "config": QUICK} | change
    with pytest.raises(UsageError, match=words):
        offramp.fit(**arguments, train=parts.train, val=parts.val, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused_with_the_reason(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    parts = images()
    config = TrainConfig(epochs=1, init=str(tmp_path / "w.safetensors"))
    with pytest.raises(UsageError, match=r"does not fit this network: \d+ missing.*1 unknown, such as a"):
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / "run")


@pytest.mark.parametrize("option", [{"precision": "bf16"}, {"channels_last": True}, {"optimizer": "adamw", "lr": 0.01}])
def test_options_train_and_resume_to_the_same_bytes(interrupted, tmp_path: Path, option: dict[str, Any]) -> None:
    parts = images()
    config = dataclasses.replace(QUICK, save_every_steps=2, **option)

    def fit(out: str) -> None:
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / out)

    calm = interrupted(fit, CrossEntropy, "terms", 8)
    assert calm.read_metrics()[-1].search_top1 == (100.0, 100.0)


def test_nesterov_takes_the_gradient_and_the_momentum_after_it() -> None:
    for nesterov in (False, True):
        tiny = network().double()
        optimizer = _optimizer(tiny, TrainConfig(lr=0.5, momentum=0.9, weight_decay=0.1, nesterov=nesterov))
        weight, velocity = tiny.exits[1][1].weight, 0.0
        for _ in range(3):
            weight.grad = torch.randn_like(weight)
            gradient = weight.grad + 0.1 * weight.detach()
            velocity = gradient + 0.9 * velocity
            wanted = weight.detach() - 0.5 * (gradient + 0.9 * velocity if nesterov else velocity)
            optimizer.step()
            torch.testing.assert_close(weight.detach(), wanted)


def test_a_run_is_described_by_its_objective(tmp_path: Path) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    config = RunFolder(tmp_path).read_config()
    assert config.objective.to_json() == objectives.describe(CrossEntropy())
    with pytest.raises(UsageError, match=r"objective.name: .*CrossEntropy' there, .*LabelSmoothing' now"):
        offramp.fit(network(), objectives.LabelSmoothing(), parts.train, parts.val, QUICK, out=tmp_path)


class Curious(TrainingRule):
    """Notes what a step finds, looks at the network as in use and leaves it so."""

    def __init__(self) -> None:
        self.found: list[tuple[bool, float]] = []

    def step(self, batch: Batch, progress: float) -> Outcome:
        network = self.bench.network
        self.found.append((all(module.training for module in network.modules()), torch.rand(()).item()))
        outcome = self.bench.descend(batch, progress)
        network.eval()
        return outcome


def test_every_step_finds_the_network_in_training_and_its_own_random_numbers(tmp_path: Path) -> None:
    parts, rule, again = images(), Curious(), Curious()
    watched = network()
    watched.stages[0][1].eval()  # as somebody left it
    offramp.fit(watched, CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / "run", rule=rule)
    torch.manual_seed(5)
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / "again", rule=again)
    assert len(rule.found) == 3 * parts.train.num_batches
    assert all(training for training, _ in rule.found)
    assert rule.found == again.found
    assert len({number for _, number in rule.found}) == len(rule.found)
    torch.manual_seed(int(hashes(Purpose.STEP, QUICK.seed, 0, 0)[0] >> 1))
    assert rule.found[0][1] == torch.rand(()).item()  # the same numbers as on any other device's path


class Overflowing(TrainingRule):
    """Leaves a number that is not finite in a buffer, in the optimiser or in what it keeps, after step `at`."""

    def __init__(self, where: str, at: int) -> None:
        self.where, self.at, self._steps = where, at, 0

    def step(self, batch: Batch, progress: float) -> Outcome:
        outcome = self.bench.descend(batch, progress)
        self._steps += 1
        if self._steps == self.at and self.where == "buffer":
            self.bench.network.stages[0][1].running_var[2] = float("inf")
        if self._steps == self.at and self.where == "optimiser":
            self.bench.optimizer.state[self.bench.parameters[0]]["momentum_buffer"][0] = float("nan")
        if self.where == "statistic":
            return Outcome(outcome.loss, outcome.logits_KBC, {"odd": outcome.logits_KBC[..., 0] * float("nan")})
        return outcome

    def state(self) -> dict[str, Tensor]:
        kept = self.where == "rule" and self._steps >= self.at
        return {"kept": torch.tensor([0.0, float("nan") if kept else 1.0])}


@pytest.mark.parametrize(
    ("where", "words"),
    [("buffer", r"stages\.0\.1\.running_var"), ("optimiser", "the optimiser's mom"), ("rule", "the rule's kept")],
)
@pytest.mark.parametrize("at", [2, 3, 9])
def test_what_is_not_finite_is_in_no_file(tmp_path: Path, where: str, words: str, at: int) -> None:
    parts = images()
    config = dataclasses.replace(QUICK, save_every_steps=1, keep_best=True)
    with pytest.raises(OfframpError, match=rf"step {at} \(epoch {1 + (at - 1) // 3}\): {words}.* Nothing of it was"):
        offramp.fit(
            network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path, rule=Overflowing(where, at)
        )
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert files[-1].name == f"step-{at - 1:09d}.safetensors"
    for file in files:
        assert all(tensor.isfinite().all() for tensor in load_tensors(file)[0].values())
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_statistic_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    parts = images()
    offramp.fit(
        network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path, rule=Overflowing("statistic", 1)
    )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["stats"] for line in lines] == [{"odd": [None, None]}] * 3


@pytest.mark.parametrize("foreign", ["all", "the newest"])
def test_a_checkpoint_of_another_run_is_not_gone_on_with(
    tmp_path: Path, foreign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with status 0, and with other weights."""
    parts, own, other = images(), tmp_path / "own", tmp_path / "other"
    for out, seed in ((own, 0), (other, 1)):
        config = dataclasses.replace(QUICK, seed=seed)
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=out)
    wanted = (own / "weights.safetensors").read_bytes()
    (own / "weights.safetensors").unlink()
    newest = sorted((own / "checkpoints").iterdir())[-1]
    for file in (own / "checkpoints").iterdir() if foreign == "all" else [newest]:
        file.write_bytes((other / "checkpoints" / newest.name).read_bytes())
    capsys.readouterr()
    if foreign == "all":
        with pytest.raises(OfframpError, match=r"Every checkpoint in .* of another run"):
            offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=own)
        return
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=own)
    assert "is of another run" in capsys.readouterr().err
    assert (own / "weights.safetensors").read_bytes() == wanted


def test_weights_of_another_run_do_not_finish_this_one(tmp_path: Path) -> None:
    parts = images()
    for out, seed in (("own", 0), ("other", 1)):
        config = dataclasses.replace(QUICK, seed=seed)
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / out)
    foreign = (tmp_path / "other" / "weights.safetensors").read_bytes()
    (tmp_path / "own" / "weights.safetensors").write_bytes(foreign)
    with pytest.raises(UsageError, match=r"weights\.safetensors is of another run"):
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / "own")


def test_another_number_of_threads_or_processes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    folder = RunFolder(tmp_path)
    for file in (folder.weights, sorted(folder.checkpoints.iterdir())[-1]):
        file.unlink()
    starts = json.loads(folder.environment.read_text())
    assert starts[0]["processes"] == 1
    folder.environment.write_text(json.dumps([starts[0] | {"processes": 2}]))
    capsys.readouterr()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    said = capsys.readouterr().err
    assert "was started with 2 processes and goes on with 1: the weights will differ" in said
    assert "threads and goes on" not in said
