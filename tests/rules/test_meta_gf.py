"""Meta-GF, against a slow version that follows the description line by line."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import offramp
from offramp.config import TrainConfig
from offramp.data import Batch
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, Objective, PowerSqrt, dynamic
from offramp.rules import MetaGF, Workbench, build
from offramp.rules.meta_gf import reach
from offramp.storage import load_tensors

# For 4 exits, read off the published vectors of 7 at exits 1, 3, 5, 7; for 6 exits at 1, 2.2, 3.4, 4.6, 5.8, 7.
AUXILIARY = {4: [1, 0.6, 0.75, 1], 6: [1, 0.92, 0.6, 0.69, 0.87, 1]}
LARGEST = {4: [0.15, 0.45, 0.75], 6: [0.15, 0.33, 0.51, 0.69, 0.87]}
RATE = 0.05
MAKE: dict[str, Any] = {"lr": RATE, "momentum": 0.9, "weight_decay": 1e-2}


class Textbook:
    """The description with copies of the network, one number per exit and weight, and autograd for these."""

    def __init__(self, network: EarlyExitNet, objective: Objective, rule: MetaGF, epochs: int) -> None:
        self.network, self.objective, self.rule, self.epochs = network, objective, rule, epochs
        self.optimizer = torch.optim.SGD(network.parameters(), **MAKE)
        self.eta: dict[tuple[int, str], Tensor] = {}
        for k in range(network.num_exits):
            copy = deepcopy(network)
            copy.exit_logits(torch.randn(2, 1, 16, 16, dtype=torch.float64))[k].sum().backward()
            for name, p in copy.named_parameters():
                if p.grad is not None:
                    self.eta[k, name] = torch.ones((), dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam(self.eta.values(), lr=rule.eta_lr)

    def merged(self, copies: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        found = {}
        for name in copies[0]:
            mine = [k for k in range(len(copies)) if (k, name) in self.eta]
            total = sum(self.eta[k, name].sigmoid() for k in mine)
            found[name] = sum(self.eta[k, name].sigmoid() * copies[k][name] for k in mine) / total
        return found

    def epoch(self, number: int, batch_of: Any, steps: int) -> None:
        net, K = self.network, self.network.num_exits
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        copies = []
        for k in range(K):
            for step in range(steps):
                batch = batch_of(number * (K + 1) + k, step)
                loss_K = self.objective.terms(net(batch.images_BCHW), batch.targets_B).loss_KB.mean(1)
                others = sum(AUXILIARY[K][j] * loss_K[j] for j in range(K) if j != k)
                self.optimizer.zero_grad()
                (loss_K[k] + self.rule.auxiliary * others).backward()
                self.optimizer.step()
            copies.append({n: p.detach().clone() for n, p in net.named_parameters()})
            with torch.no_grad():
                for n, p in net.named_parameters():
                    p.copy_(start[n])
        before = {key: eta.detach().clone() for key, eta in self.eta.items()}
        self.adam.param_groups[0]["lr"] = self.rule.eta_lr * (0.1 if number >= self.epochs / 2 else 1)
        for step in range(steps):
            batch = batch_of(number * (K + 1) + K, step)
            logits_KBC = functional_call(net, self.merged(copies), (batch.images_BCHW,))
            loss_K = self.objective.terms(logits_KBC, batch.targets_B).loss_KB.mean(1)
            tau = [min(C, 0.01 + number * C / self.epochs) for C in LARGEST[K]] + [1]
            self.adam.zero_grad()
            sum(t * loss for t, loss in zip(tau, loss_K, strict=True)).backward()
            self.adam.step()
        with torch.no_grad():
            final = self.merged(copies)
            for n, p in net.named_parameters():
                p.copy_(final[n])
            for key, eta in self.eta.items():
                eta.copy_((1 - self.rule.kept) * eta + self.rule.kept * before[key])


def batch_of(epoch: int, step: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * epoch + step)
    pixels = torch.randn(5, 1, 16, 16, dtype=torch.float64, generator=generator)
    return Batch(pixels, torch.randint(5, (5,), generator=generator), torch.arange(5), 5)


def prepared(rule: MetaGF, network: EarlyExitNet, objective: Objective) -> Workbench:
    optimizer = torch.optim.SGD(network.parameters(), **MAKE, fused=True)
    bench = Workbench(network=network, forward=network, objective=objective, optimizer=optimizer)
    rule.prepare(bench)
    return bench


def an_epoch(rule: MetaGF, epoch: int, steps: int, total: int) -> None:
    for step in range(steps):
        rule.step(batch_of(epoch, step), (epoch * steps + step) / (total * steps))
    rule.end_epoch()


@pytest.mark.parametrize(
    ("rule", "objective"),
    [
        (MetaGF(auxiliary=0.3, eta_lr=1.0, kept=0.25), dynamic()),
        pytest.param(MetaGF(), CrossEntropy(), marks=pytest.mark.slow),
    ],
)
def test_epochs_are_those_of_the_description(network: EarlyExitNet, rule: MetaGF, objective: Objective) -> None:
    """Both families, three epochs of the method: momentum, statistics of batch norm and eta go on; eta's rate falls."""
    book = Textbook(deepcopy(network), objective, rule, epochs=3)
    prepared(rule, network, objective)
    together = rule.epochs_together(network)
    for number in range(3):
        for epoch in range(together * number, together * (number + 1)):
            an_epoch(rule, epoch, steps=2, total=3 * together)
        book.epoch(number, batch_of, steps=2)
    found, wanted = network.state_dict(), book.network.state_dict()
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-7, atol=1e-10) for name in wanted)
    eta_KM = rule.state()["eta"]
    for (k, name), eta in book.eta.items():
        assert eta_KM[k, rule.names.index(name)].item() == pytest.approx(eta.item(), abs=1e-7)
    learned = [eta for (_, name), eta in book.eta.items() if name.startswith("stages.0")]
    assert max(abs(eta.item() - 1) for eta in learned) > 0.01


def test_who_reaches_what(network: EarlyExitNet) -> None:
    """A head is its exit's, the first stage everyone's, the last stage the last exit's."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    state = deepcopy(network.state_dict())
    reach_KM = reach(network, parameters, torch.empty(0, 1, 16, 16, dtype=torch.float64))
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    K = network.num_exits
    for m, name in enumerate(names):
        room, number, *_ = name.split(".")
        if room == "exits":
            assert reach_KM[:, m].nonzero().flatten().tolist() == [int(number)]
        if name.startswith(f"stages.{K - 1}."):
            assert reach_KM[:, m].nonzero().flatten().tolist() == [K - 1]
    assert reach_KM[:, 0].all()


def test_between_passes_the_network_has_the_weights_of_the_method(network_of) -> None:
    network = network_of().double()
    rule = MetaGF()
    prepared(rule, network, PowerSqrt())
    pixels = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    batch = Batch(pixels, torch.tensor([0, 1] * 3), torch.arange(6), 6)
    start = [weight.detach().clone() for weight in network.parameters()]
    for _ in range(2):
        rule.step(batch, 0.0)
        assert not all(torch.equal(a, b) for a, b in zip(network.parameters(), start, strict=True))
        rule.end_epoch()
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), start, strict=True))
    rule.step(batch, 0.0)
    rule.end_epoch()
    rows_RP = rule.state()["trained.stages.0.0.weight"]
    assert rows_RP.shape == (3, network.stages[0][0].weight.numel())
    torch.testing.assert_close(network.stages[0][0].weight.flatten(), rows_RP.mean(0))  # all eta are 1


def test_what_is_not_finite_reaches_neither_weights_nor_eta(network_of) -> None:
    network = network_of().double()
    rule = MetaGF()
    bench = prepared(rule, network, PowerSqrt())
    pixels = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    batch = Batch(pixels, torch.tensor([0, 1] * 3), torch.arange(6), 6)
    for number in range(3):
        rule.step(batch, number / 4)
        rule.end_epoch()
    before = [weight.detach().clone() for weight in network.parameters()]
    batch.images_BCHW[2] = torch.inf
    rule.step(batch, 0.75)
    assert bench.broken
    assert rule.state()["eta"].eq(1).all()
    for weight, kept in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(weight.detach(), kept)


@pytest.mark.parametrize(
    ("option", "broken_at"),  # in the second exit's pass, and in eta's
    [({}, 4), ({"optimizer": "adamw", "channels_last": True}, 14)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in (({}, 14), ({"precision": "bf16"}, 14))],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    images, network_of, interrupted, tmp_path: Path, option: dict[str, Any], broken_at: int
) -> None:
    parts = images()
    config = TrainConfig(epochs=8, lr=0.02, save_every_steps=1, **option)

    def fit(out: str) -> None:
        offramp.fit(network_of(), dynamic(), parts.train, parts.val, config, out=tmp_path / out, rule=MetaGF())

    # The first call is the trial of one image before training; eta is in the checkpoint.
    calm = interrupted(fit, PowerSqrt, "terms", 1 + broken_at, checkpoint=True)
    lines = calm.read_metrics()
    assert lines[-1].search_nll[-1] < lines[0].search_nll[-1]
    described = calm.read_config().rule
    assert build(described).settings() == MetaGF().settings()


@pytest.mark.parametrize(
    ("num_exits", "epochs", "message"),
    [
        (3, 3, "takes 4 passes over the images at a time for 3 exits, so epochs cannot be 3; take 4"),
        (3, 10, "epochs cannot be 10; take 8 or 12"),
        (1, 2, "for one exit use the rule standard"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    images, network_of, tmp_path: Path, num_exits: int, epochs: int, message: str
) -> None:
    config = TrainConfig(epochs=epochs)
    with pytest.raises(UsageError, match=message):
        offramp.fit(
            network_of(num_exits), dynamic(), images().train, config=config, out=tmp_path / "run", rule=MetaGF()
        )
    assert not (tmp_path / "run").exists()


def test_compiled_networks_take_the_same_steps(network_of) -> None:
    found, plain = network_of().double(), network_of().double()
    compiled = torch.compile(found, dynamic=False, backend="aot_eager")
    batch = Batch(torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1] * 3), torch.arange(6), 6)
    for network, forward in ((found, compiled), (plain, plain)):
        rule = MetaGF()
        prepared(rule, network, dynamic())
        rule.bench.forward = forward
        for number in range(4):
            rule.step(batch, number / 4)
            rule.end_epoch()
        assert not rule.state()["eta"].eq(1).all()
    for parameter, other in zip(found.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


def test_two_processes_take_the_steps_of_one(tmp_path: Path, together) -> None:
    """Also with an exit that the loss does not reach."""
    for number in (1, 2):
        together(number, Path(__file__).with_name("meta_gf_steps.py"), tmp_path / str(number))
    one, two = (load_tensors(tmp_path / out)[0] for out in "12")
    assert not one["rule.eta"].eq(1).all()
    torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-11)
