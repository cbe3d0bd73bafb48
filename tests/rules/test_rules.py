"""What every rule keeps, whatever its method."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.config import Spec, TrainConfig
from offramp.data import Batch
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.network import Carry, EarlyExitNet, plain_link
from offramp.objectives import CrossEntropy, PowerSqrt, Terms, dynamic
from offramp.rules import DFS, RULES, GradientEquilibrium, Standard, TrainingRule, Workbench, build

NAMES = [
    "dfs",
    "dfs ratio=0.3 head=rest dropout=0.5",
    "gradient-equilibrium",
    "pcgrad",
    "cagrad",
    "cagrad c=0.4 rescale=false",
    "cgt",
    "cgt gate=hard",
]


def rule_of(name: str) -> TrainingRule:
    return build(Spec.parse(name.split()))


def bench_of(network: EarlyExitNet, forward: Any = None, objective: Any = None) -> Workbench:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    return Workbench(
        network=network,
        forward=network if forward is None else forward,
        objective=objective or dynamic(),
        optimizer=optimizer,
    )


def step(rule: TrainingRule, bench: Workbench) -> None:
    rule.prepare(bench)
    torch.manual_seed(0)
    rule.step(Batch(torch.randn(6, 1, 8, 8), torch.tensor([0, 1] * 3), torch.arange(6), 6), 0.0)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_replaces_no_method_of_another(name: str) -> None:
    """What it writes is its own, or a hook of the contract that does nothing by itself."""
    hooks = {"step", "check", "epochs_together", "set_up", "end_epoch", "state", "load_state"}
    assert RULES[name].__bases__ == (TrainingRule,)
    replaced = {key for key in vars(RULES[name]) if callable(getattr(TrainingRule, key, None)) and key[0] != "_"}
    assert replaced <= hooks


def test_parts_work_together(network_of) -> None:
    """Weights of the exits, a link that cuts the last exit off, and surgery on what the two others share."""

    def reweight(terms: Terms, logits_KBC: Tensor, targets_B: Tensor, progress: float) -> Terms:
        assert progress == 0.5
        assert logits_KBC.shape[:2] == terms.loss_KB.shape == (3, len(targets_B))
        return terms.weighted(torch.tensor([[1.0], [3.0], [2.0]]))

    def link(k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
        return carry[reads], tuple(x.detach() for x in carry) if k == 1 else carry

    network = network_of()
    weights = {name: weight for name, weight in network.named_parameters() if name.endswith("0.weight")}
    batch = Batch(torch.randn(6, 1, 8, 8), torch.tensor([0, 1] * 3), torch.arange(6), 6)
    loss_K = PowerSqrt().terms(network(batch.images_BCHW), batch.targets_B).loss_KB.mean(1)
    own_K = [torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True) for loss in loss_K]
    bench = bench_of(network, objective=PowerSqrt())
    outcome = bench.descend(
        batch, 0.5, reweight=reweight, link=link, combine=lambda gramian_22: torch.tensor([10.0, 0.0])
    )
    assert network.link is plain_link
    assert outcome.stats_KB["weight"].mean(1).tolist() == [1, 3, 2]
    wanted = [10 * own_K[0][0], 3 * own_K[1][1], 2 * own_K[2][2]]  # of each stage
    for weight, gradient in zip(weights.values(), wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_with_the_same_bytes(
    images, network_of, interrupted, tmp_path: Path, name: str, precision: Any
) -> None:
    parts = images()
    config = TrainConfig(epochs=3, lr=0.02, save_every_steps=2, precision=precision)

    def fit(out: str) -> None:
        rule, path = rule_of(name), tmp_path / out
        trained = offramp.fit(network_of(), dynamic(), parts.train, parts.val, config, out=path, rule=rule)
        assert trained.link is plain_link

    calm = interrupted(fit, PowerSqrt, "terms", 7)  # the first is the trial of one image before training
    lines = calm.read_metrics()
    assert lines[-1].loss < lines[0].loss
    described = calm.read_config().rule
    assert build(described).settings() == rule_of(name).settings()


@dataclass(eq=False)
class Scaled(Standard):
    factor: float = 1.0
    teacher: str | None = None


class ScaledByHand(Standard):
    def __init__(self, factor: float = 1.0, teacher: str | None = None) -> None:
        self.factor, self.teacher, self.network, self._cache = factor, teacher, object(), 3


@pytest.mark.parametrize("kind", [Scaled, ScaledByHand])
def test_arguments_of_ones_own_rule_are_recorded_and_another_value_is_refused(
    images, network_of, tmp_path: Path, kind: type
) -> None:
    parts, objective, config = images(), dynamic(), TrainConfig(epochs=1)

    def fit(out: str, rule: TrainingRule) -> RunFolder:
        path = tmp_path / out
        offramp.fit(network_of(), objective, parts.train, parts.val, config, out=path, rule=rule)
        return RunFolder(path)

    first = fit("first", kind(0.5))
    name = f"{kind.__module__}:{kind.__qualname__}"
    assert first.read_config().rule == Spec(name, {"factor": 0.5, "teacher": None})
    with pytest.raises(UsageError, match=r"rule\.args\.factor: 0\.5 there, 0\.25 now"):
        fit("first", kind(0.25))
    second = fit("second", kind(teacher=str(first.path)))
    assert [one["run"] for one in second.read_origin()["ancestors"]] == ["first"]


@pytest.mark.parametrize("name", [name for name in NAMES if "dropout" not in name])
def test_with_one_exit_every_rule_is_plain_training(network_of, name: str) -> None:
    found, plain = network_of(1), network_of(1)
    step(rule_of(name), bench_of(found))
    step(Standard(), bench_of(plain))
    for parameter, other in zip(found.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


def test_a_network_that_a_rule_is_not_made_for_is_refused_before_anything_is_written(images, tmp_path: Path) -> None:
    parts = images()
    exits = [nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()) for _ in range(2)]
    network = EarlyExitNet([nn.Identity()] * 2, exits, num_classes=2)
    with pytest.raises(UsageError, match="exit 1 has none"):
        offramp.fit(network, CrossEntropy(), parts.train, parts.val, out=tmp_path / "run", rule=DFS(dropout=0.5))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_link_is_there_in_steps_only(network_of, name: str) -> None:
    """Also where a step breaks off, and where the network had a link of its own."""

    def own_link(*args: Any) -> Any:
        return plain_link(*args)

    class Odd(CrossEntropy):
        def terms(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(network.link)
            raise ArithmeticError

    seen: list[Any] = []
    network = network_of()
    network.link = own_link
    rule = rule_of(name)
    with pytest.raises(ArithmeticError):
        step(rule, bench_of(network, objective=Odd()))
    assert seen == [rule.link]  # type: ignore[attr-defined]
    assert network.link is own_link
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    "rule",
    [
        DFS(ratio=0.3, head="rest"),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (DFS(), GradientEquilibrium())),
    ],
)
def test_compiled_networks_take_links(network_of, rule: Any) -> None:
    found, plain, standard = network_of(), network_of(), network_of()
    compiled = torch.compile(found, dynamic=False, backend="aot_eager")
    found.train()
    compiled(torch.randn(6, 1, 8, 8))  # a graph without the link is there already
    found.load_state_dict(plain.state_dict())
    step(rule, bench_of(found, compiled))
    step(rule, bench_of(plain))
    step(Standard(), bench_of(standard))
    for parameter, other in zip(found.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)
    assert not torch.allclose(found.stages[0][0].weight, standard.stages[0][0].weight, rtol=1e-3)


def test_compiled_networks_take_dropout_in_steps_only(network_of) -> None:
    """With one image, the gradient of a Linear is 0 where its input was dropped."""
    image = Batch(torch.randn(1, 1, 8, 8), torch.tensor([1]), torch.arange(1), 1)

    def gradients(dropout: float) -> list[torch.Tensor]:
        rule = DFS(dropout=dropout)
        rule.prepare(bench)
        rule.step(image, 0.0)
        return [head[-1].weight.grad[0].clone() for head in network.exits]

    network = network_of()
    bench = bench_of(network, torch.compile(network, dynamic=False, backend="aot_eager"))
    dropped = gradients(0.5)
    network.eval()
    torch.testing.assert_close(bench.forward(image.images_BCHW), network(image.images_BCHW))
    network = network_of()
    bench = bench_of(network)
    whole = gradients(0.0)
    assert torch.cat(dropped)[torch.cat(whole) != 0].eq(0).double().mean().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_runs_end_with_the_same_bytes(
    images, network_of, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = images()
    config = TrainConfig(epochs=2, lr=0.02, form="compiled")
    for out in ("a", "b"):
        torch._dynamo.reset()
        offramp.fit(network_of(), dynamic(), parts.train, parts.val, config, out=tmp_path / out, rule=rule_of(name))
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()
    assert ("form compiled has no effect" in capsys.readouterr().err) == rule_of(name).needs_plain
