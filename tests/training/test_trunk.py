"""Training the exits alone, and the trunk at a rate of its own."""

import dataclasses
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp import data
from offramp.config import Spec, TrainConfig
from offramp.data import Batch, Parts
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, PowerSqrt
from offramp.rules import RULES, Outcome, Standard, TrainingRule, build
from offramp.storage import load_tensors
from offramp.training.job import Job
from offramp.training.trunk import Frozen, frozen, parameter_groups

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
QUICK = TrainConfig(epochs=3, lr=0.05, freeze_trunk=True)


def images(**more: Any) -> Parts:
    """Two classes told apart by brightness, 8 x 8 pixels; the last batch is smaller."""
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).integers(0, 100, (60, 1, 8, 8))
    pixels = (noise + 150 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return data.arrays(pixels, labels, **{"batch_size": 16, "holdout": 10, "flip": True, **more})


class Counted(nn.Sequential):
    """Counts its calls, and those of its backward pass."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.calls = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = super().forward(x)
        if y.requires_grad:
            y.register_hook(self._count)
        return y

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1


def network(damping: bool = False, num_exits: int = 3) -> EarlyExitNet:
    """Batch norm in trunk and heads, dropout in the trunk."""
    torch.manual_seed(0)
    stages = [Counted(nn.Conv2d(c, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)) for c in (1, 4, 4)]
    heads = [
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2 + damping))
        for _ in stages
    ]
    return EarlyExitNet(stages[:num_exits], heads[:num_exits], damping=damping)


def trunk_of(net: EarlyExitNet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.stages.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_frozen_trunk_keeps_weights_and_statistics_and_the_heads_train(tmp_path: Path) -> None:
    parts, net = images(), network()
    before, heads = trunk_of(net), deepcopy(net.exits.state_dict())
    trained = offramp.fit(net, CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    assert_same(trunk_of(trained), before)
    after = trained.exits.state_dict()
    assert all(not torch.equal(value, heads[name]) for name, value in after.items())  # statistics of heads move
    lines = RunFolder(tmp_path).read_metrics()
    assert lines[-1].loss < lines[0].loss
    again = offramp.load(tmp_path, into=network())
    some = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(some), trained(some))


def test_a_frozen_trunk_of_which_nothing_is_known_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    known = {"bare": None, "untrained": {"weights": None}, "hub": {"weights": "hub"}, "run": {"run": "nowhere"}}
    for name, origin in known.items():
        parts, net = images(), network()
        net.origin = origin
        config = dataclasses.replace(QUICK, epochs=1)
        offramp.fit(net, CrossEntropy(), parts.train, parts.val, config, out=tmp_path / f"a {name}")
        said[name] = capsys.readouterr().err
        assert f"Next: offramp evaluate '{tmp_path}/a {name}'\n" in said[name]
    words = "The trunk stays as it is, and nothing says that it was trained; --init gives it weights."
    assert {name: words in text for name, text in said.items()} == {
        **dict.fromkeys(["bare", "untrained"], True),
        **dict.fromkeys(["hub", "run"], False),
    }


def test_the_backward_pass_does_not_touch_the_stages(tmp_path: Path) -> None:
    parts = images()
    for freeze_trunk in (False, True):
        net = network()
        config = dataclasses.replace(QUICK, freeze_trunk=freeze_trunk, form="plain")
        offramp.fit(net, CrossEntropy(), parts.train, parts.val, config, out=tmp_path / str(freeze_trunk))
        steps = 3 * parts.train.num_batches
        watched = 3 * parts.val.search.num_batches + 1  # and one blank image to try it out
        assert [stage.calls for stage in net.stages] == [steps + watched] * 3
        assert [stage.backwards for stage in net.stages] == [0 if freeze_trunk else steps] * 3
        assert all((p.grad is None) == freeze_trunk for p in net.stages.parameters())


class Spy(TrainingRule):
    """Notes the modes and the optimiser's weights, and calls `train` within a step, as rules may."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        net = self.bench.network
        net.eval()
        net.train()
        assert net.training
        assert not any(module.training for module in net.stages.modules())
        assert all(module.training for module in net.exits.modules())
        held = [id(p) for group in self.bench.optimizer.param_groups for p in group["params"]]
        assert held == [id(p) for p in net.exits.parameters()] == [id(p) for p in self.bench.parameters]
        return self.bench.descend(batch, progress)


def test_stages_stay_in_evaluation_mode_whoever_says_otherwise(tmp_path: Path) -> None:
    parts, net = images(), network()
    offramp.fit(net, CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path, rule=Spy())
    net.train()
    assert all(module.training for module in net.modules())  # as everywhere, once the run is over


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_network_is_as_it_was(tmp_path: Path, fails: bool) -> None:
    class Broken(CrossEntropy):
        def terms(self, *args: Any, progress: float = 0.0) -> Any:
            if progress > 0.5 and fails:
                raise ArithmeticError
            return super().terms(*args, progress=progress)

    parts, net = images(), network()
    net.stages[1][0].weight.requires_grad_(False)
    net.exits[0][-1].bias.requires_grad_(False)
    asked = {name: p.requires_grad for name, p in net.named_parameters()}
    stages, names = net.stages, list(net.state_dict())
    with pytest.raises(ArithmeticError) if fails else frozen(network()):
        offramp.fit(net, Broken(), parts.train, parts.val, QUICK, out=tmp_path)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == asked
    assert net.stages is stages
    assert list(net.state_dict()) == names


def test_while_frozen_names_modules_and_copies_are_the_same() -> None:
    net = network()
    names, modules = list(net.state_dict()), list(net.stages)
    with frozen(net):
        assert list(net.state_dict()) == names
        assert list(net.stages) == modules
        twin = deepcopy(net).train()
        assert isinstance(twin.stages, Frozen)
        assert not any(module.training for module in twin.stages.modules())


SLOWLY = ("gradient-equilibrium", "pcgrad", "cagrad", "dfs ratio=0.3 head=rest dropout=0.5", "cgt gate=hard")


@pytest.mark.parametrize(
    "name",
    [*(name for name in RULES if name not in SLOWLY), *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY)],
)
def test_every_rule_trains_exits_on_a_frozen_trunk_and_resumes(interrupted, tmp_path: Path, name: str) -> None:
    parts = images()
    if name == "one-for-all":
        teacher = network(damping=True)
        teacher.spec = Spec(f"{__name__}:network", {"damping": True})
        offramp.fit(teacher, PowerSqrt(), parts.train, parts.val, TrainConfig(epochs=1), out=tmp_path / "teacher")
    config = dataclasses.replace(QUICK, epochs=4, lr=0.02, save_every_steps=2)
    frozen_weights = trunk_of(network(damping=True))

    def fit(out: str) -> None:
        rule = build(Spec.parse([*name.split(), *([f"teacher={tmp_path / 'teacher'}"] * (name == "one-for-all"))]))
        net = network(damping=True)
        offramp.fit(net, PowerSqrt(), parts.train, parts.val, config, out=tmp_path / out, rule=rule)
        assert_same(trunk_of(net), frozen_weights)

    calm = interrupted(fit, PowerSqrt, "terms", 9, checkpoint=True)
    heads = network(damping=True).exits.state_dict()
    tensors, _ = load_tensors(calm.weights)
    assert all(not torch.equal(tensors[f"exits.{n}"], value) for n, value in heads.items() if n.endswith("weight"))


@pytest.mark.parametrize("name", ["dfs", "gradient-equilibrium", "pcgrad", "cagrad"])
def test_rules_for_the_trunks_gradients_are_plain_training_without_them(tmp_path: Path, name: str) -> None:
    parts = images()
    nets = []
    for rule in (name, "standard"):
        net = network()
        offramp.fit(
            net, CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path / rule, rule=build(Spec.parse([rule]))
        )
        nets.append(net)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


@pytest.mark.parametrize("form", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_forms_and_precisions_train_heads_on_a_frozen_trunk(tmp_path: Path, form: Any, precision: Any) -> None:
    parts, net = images(), network()
    before = trunk_of(net)
    config = dataclasses.replace(QUICK, form=form, precision=precision, channels_last=True, xray=5)
    offramp.fit(net, CrossEntropy(), parts.train, parts.val, config, out=tmp_path)
    assert_same(trunk_of(net), before)
    assert RunFolder(tmp_path).read_metrics()[-1].search_top1 == (100.0,) * 3
    assert RunFolder(tmp_path).xray.is_file()


def by_hand(net: EarlyExitNet, parts: Parts, config: TrainConfig, optimizer: type, **more: Any) -> EarlyExitNet:
    """The same steps by two optimisers, the schedule written down anew."""
    net = net.train()
    rates = ((net.exits, 1.0), (net.stages, config.trunk_lr))
    optimizers = [(optimizer(part.parameters(), lr=1.0, **more), factor) for part, factor in rates]
    steps = config.epochs * parts.train.num_batches
    step = 0
    for epoch in range(config.epochs):
        for batch in parts.train.batches(seed=config.seed, epoch=epoch):
            loss = CrossEntropy()(net(batch.images_BCHW), batch.targets_B)
            for one, factor in optimizers:
                for group in one.param_groups:
                    group["lr"] = factor * 0.5 * config.lr * (1 + np.cos(np.pi * step / steps))
                one.zero_grad()
            loss.backward()
            for one, _ in optimizers:
                one.step()
            step += 1
    return net


def without_dropout() -> EarlyExitNet:
    net = network()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_trunk_learns_at_its_own_rate(tmp_path: Path, optimizer: Any) -> None:
    parts = images()
    config = TrainConfig(epochs=2, lr=0.02, trunk_lr=0.1, optimizer=optimizer, weight_decay=0.01)
    found = offramp.fit(without_dropout(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path)
    kinds: dict[str, Callable[[], EarlyExitNet]] = {
        "sgd": lambda: by_hand(without_dropout(), parts, config, torch.optim.SGD, momentum=0.9, weight_decay=0.01),
        "adamw": lambda: by_hand(without_dropout(), parts, config, torch.optim.AdamW, weight_decay=0.01),
    }
    torch.testing.assert_close(found.state_dict(), kinds[optimizer]().state_dict(), rtol=1e-3, atol=1e-5)


def test_a_factor_of_one_is_no_factor() -> None:
    net = network()
    groups = parameter_groups(net, TrainConfig())
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in net.parameters()]
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("rule", "optimizer"), [("standard", "sgd"), ("standard", "adamw"), ("wpn", "sgd"), ("meta-gf", "sgd")]
)
def test_two_rates_resume_to_the_same_bytes(interrupted, tmp_path: Path, rule: str, optimizer: Any) -> None:
    parts = images()
    config = TrainConfig(epochs=4, lr=0.02, trunk_lr=0.1, optimizer=optimizer, save_every_steps=2)

    def fit(out: str) -> None:
        method = build(Spec.parse([rule]))
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / out, rule=method)

    interrupted(fit, CrossEntropy, "terms", 9, checkpoint=True)


def without_weights_in(part: str) -> EarlyExitNet:
    if part == "exits":
        stages = [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.Linear(2, 2)]
        return EarlyExitNet(stages, [nn.Identity(), nn.Identity()], num_classes=2)
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)) for _ in range(2)]
    return EarlyExitNet([nn.Identity(), nn.ReLU()], heads)


@pytest.mark.parametrize(
    ("change", "part", "words"),
    [
        ({"freeze_trunk": True}, "exits", "the exits of this network have no weights of their own"),
        ({"trunk_lr": 0.1}, "exits", "the exits of this network have no weights to train; use lr alone"),
        ({"trunk_lr": 0.1}, "stages", "the trunk of this network has no weights to train; use lr alone"),
    ],
)
def test_where_a_part_has_nothing_to_train(tmp_path: Path, change: dict[str, Any], part: str, words: str) -> None:
    parts, config = images(), TrainConfig(epochs=1, **change)
    with pytest.raises(UsageError, match=words):
        offramp.fit(without_weights_in(part), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"freeze_trunk": True, "trunk_lr": 0.1}, "a frozen trunk is not trained"),
        ({"trunk_lr": 0.0}, "use freeze-trunk"),
        ({"trunk_lr": -1.0}, "trunk-lr must be a number of at least 0"),
        ({"trunk_lr": float("nan")}, "trunk-lr must be a number"),
        ({"keep_features": "yes"}, "add freeze-trunk"),
        ({"keep_features": "maybe"}, "keep-features 'maybe' is unknown"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainConfig(**change)


def test_another_way_to_train_the_trunk_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = images()
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
    own = sum(p.numel() for p in network().exits.parameters())
    assert f"parameters, of which {own:,} train, " in capsys.readouterr().err
    other = dataclasses.replace(QUICK, freeze_trunk=False, trunk_lr=0.1)
    words = r"training.freeze_trunk: True there, False now; training.trunk_lr: 1.0 there, 0.1 now"
    with pytest.raises(UsageError, match=words):
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, other, out=tmp_path)


def test_a_run_from_before_these_settings_is_continued(interrupted, tmp_path: Path) -> None:
    """Its `config.json` lacks them: they count as their defaults."""
    parts = images()
    config = TrainConfig(epochs=3, lr=0.05, save_every_steps=2)

    def fit(out: str) -> None:
        path = RunFolder(tmp_path / out).config
        if not path.is_file():
            job = Job(network(), CrossEntropy(), parts.train, parts.val, config, Standard())
            values = job.describe() | {"format": 1}
            for name in ("freeze_trunk", "trunk_lr", "augment", "keep_features"):
                del values["training"][name]
            path.parent.mkdir()
            path.write_text(json.dumps(values))
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / out)

    interrupted(fit, CrossEntropy, "terms", 7)
