"""Learning to weight samples, against a slow version that follows the description line by line."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from offramp.config import Spec
from offramp.data import Batch
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, LabelSmoothing, Objective, PowerSqrt, dynamic
from offramp.rules import WPN, Workbench, build
from offramp.rules.wpn import taken

CENTRE = {"row": (0, True), "col": (1, True), "mat": ((0, 1), True)}


class Textbook:
    """The algorithm with second derivatives by autograd, fresh copies of the network and plain loops."""

    def __init__(self, network: EarlyExitNet, objective: Objective, optimizer: Any, rule: WPN) -> None:
        self.network, self.objective, self.optimizer, self.rule = network, objective, optimizer, rule
        self.iteration = 0

    def draw(self) -> None:
        K, rule = self.network.num_exits, self.rule
        inputs = 2 * K if rule.inputs == "both" else K
        self.predictor = nn.Sequential(nn.Linear(inputs, rule.hidden), nn.ReLU(), nn.Linear(rule.hidden, K), nn.Tanh())
        self.predictor.double()
        self.adam = torch.optim.Adam(self.predictor.parameters(), weight_decay=rule.meta_weight_decay)

    def weights(self, logits_KBC: Tensor, targets_B: Tensor) -> Tensor:
        N = self.network.num_classes
        probs_KBC = logits_KBC.detach().softmax(-1)
        loss_BK = torch.stack([-probs_KBC[:, b, y].log() for b, y in enumerate(targets_B)])
        conf_BK = probs_KBC[..., :N].amax(-1).T
        seen = {"loss": [loss_BK], "confidence": [conf_BK], "both": [loss_BK, conf_BK]}[self.rule.inputs]
        out_BK = self.predictor(torch.cat(seen, 1))
        dims, keep = CENTRE[self.rule.centre]
        return 1 + self.rule.epsilon * (out_BK - out_BK.mean(dims, keepdim=keep)).T

    def pseudo(self, parameter: Tensor, g: Tensor) -> Tensor:
        (group,) = self.optimizer.param_groups
        v = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
        u = g + group["weight_decay"] * parameter.detach()
        if v is not None:
            u = group["momentum"] * v + u
        return parameter.detach() - group["lr"] * u

    def meta_loss(self, train: tuple[Tensor, Tensor], meta: tuple[Tensor, Tensor], draws: int) -> Tensor:
        copy = deepcopy(self.network)
        with torch.random.fork_rng():
            torch.manual_seed(draws)
            logits_KBC = copy(train[0])
        loss_KB = self.objective.terms(logits_KBC, train[1]).loss_KB
        J = (self.weights(logits_KBC, train[1]) * loss_KB).mean(1).sum()
        gradients = torch.autograd.grad(J, list(copy.parameters()), create_graph=True)
        names_and_own = self.network.named_parameters()
        moved = {n: self.pseudo(p, g) for (n, p), g in zip(names_and_own, gradients, strict=True)}
        logits_KBC = functional_call(copy, moved, (meta[0],))
        probs_KBC = logits_KBC.softmax(-1)
        n, K, p = len(meta[1]), len(logits_KBC), self.rule.p
        left = list(range(n))
        total = torch.zeros((), dtype=torch.float64)
        for k in range(K):
            share = p ** (k + 1) / sum(p**m for m in range(1, K + 1))
            order = sorted(left, key=lambda b, k=k: -probs_KBC[k, b, : copy.num_classes].max().item())
            mine = order if k == K - 1 else order[: int(n * share)]
            left = [b for b in left if b not in mine]
            if mine:
                total = total + sum(-probs_KBC[k, b, meta[1][b]].log() for b in mine) / len(mine)
        return total

    def step(self, images: Tensor, targets: Tensor) -> None:
        if self.iteration == 0:
            self.draw()
        cut = -(-len(targets) // 2)
        halves = [(images[:cut], targets[:cut]), (images[cut:], targets[cut:])]
        for train, meta in (halves, halves[::-1]):
            draws = int(torch.randint(2**63 - 1, ()))
            if self.iteration % self.rule.interval == 0:
                self.adam.zero_grad()
                self.meta_loss(train, meta, draws).backward()
                (group,) = self.optimizer.param_groups
                self.adam.param_groups[0]["lr"] = self.rule.meta_lr * group["lr"] / self.optimizer.defaults["lr"]
                self.adam.step()
            self.optimizer.zero_grad()
            with torch.random.fork_rng():
                torch.manual_seed(draws)
                logits_KBC = self.network(train[0])
            weights_KB = self.weights(logits_KBC, train[1]).detach()
            (weights_KB * self.objective.terms(logits_KBC, train[1]).loss_KB).mean(1).sum().backward()
            self.optimizer.step()
        self.iteration += 1


def sgd(network: nn.Module, **settings: Any) -> torch.optim.SGD:
    defaults: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "fused": True}
    return torch.optim.SGD(network.parameters(), **defaults | settings)


def prepared(rule: WPN, network: EarlyExitNet, objective: Objective | None = None, **settings: Any) -> Workbench:
    bench = Workbench(network, network, objective or CrossEntropy(), sgd(network, **settings))
    rule.prepare(bench)
    return bench


def dropping() -> EarlyExitNet:
    stages = [nn.Sequential(nn.Conv2d(c, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Dropout(0.3)) for c in (1, 3)]
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 5)) for side in (7, 3)]
    return EarlyExitNet(stages, exits).double()


def compare_with_textbook(
    rule: WPN, network: EarlyExitNet, batch: Batch, objective: Objective, num_steps: int = 2
) -> None:
    own = deepcopy(network)
    book = Textbook(own, objective, sgd(own, fused=False), rule)
    bench = prepared(rule, network, objective)
    for number in range(num_steps):
        for optimizer in (bench.optimizer, book.optimizer):
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
        torch.manual_seed(number)
        rule.step(batch, 0.0)
        torch.manual_seed(number)
        book.step(batch.images_BCHW, batch.targets_B)
    for found, wanted in ((network, own), (rule.predictor, book.predictor)):
        pairs = zip(found.state_dict().values(), wanted.state_dict().values(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)
    for a, b in zip(rule.predictor.parameters(), book.predictor.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-13)
        assert a.grad.abs().max() > 1e-7  # the smallest weight decay alone gives it no gradient


@pytest.mark.parametrize(
    ("rule", "objective"),
    [
        (WPN(hidden=20), CrossEntropy()),
        (WPN(hidden=20, centre="row", inputs="both"), dynamic()),
        (WPN(hidden=20, centre="mat", inputs="confidence", p=1.3, interval=2), PowerSqrt(0.1)),
        pytest.param(WPN(hidden=20, meta_lr=0.1), dynamic(with_gradient=True), marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_the_description(
    network: EarlyExitNet, batch: Batch, rule: WPN, objective: Objective
) -> None:
    compare_with_textbook(rule, network, batch, objective)


def test_the_derivative_is_of_the_draw_that_was_trained_on(batch: Batch) -> None:
    compare_with_textbook(WPN(hidden=20), dropping(), batch, LabelSmoothing())


def test_the_descriptions_gradient_is_that_of_finite_differences(batch: Batch) -> None:
    rule = WPN(hidden=6)
    network = dropping()
    book = Textbook(network, CrossEntropy(), sgd(network, fused=False), rule)
    book.step(batch.images_BCHW, batch.targets_B)  # so that there is momentum
    train, meta = (batch.images_BCHW[:4], batch.targets_B[:4]), (batch.images_BCHW[4:], batch.targets_B[4:])

    def loss() -> Tensor:
        torch.manual_seed(1)
        return book.meta_loss(train, meta, draws=2)

    book.adam.zero_grad()
    loss().backward()
    for parameter in book.predictor.parameters():
        way = torch.randn_like(parameter)
        values = []
        for side in (1e-4, -1e-4):
            with torch.no_grad():
                parameter += side * way
            values.append(loss().item())
            with torch.no_grad():
                parameter -= side * way
        assert (values[0] - values[1]) / 2e-4 == pytest.approx((parameter.grad * way).sum().item(), rel=1e-4)


def test_looking_ahead_leaves_the_network_as_it_is(batch: Batch) -> None:
    """Without a learning rate two plain forward passes, one for each half, are all that happens to it."""
    network = dropping()
    wanted = deepcopy(network)
    rule = WPN(hidden=20)
    prepared(rule, network, lr=0.0)
    rule.step(batch, 0.0)
    for images in (batch.images_BCHW[:4], batch.images_BCHW[4:]):
        # Dropout comes after batch norm, and the second stage sees what it dropped: only the first can be foretold.
        wanted.stages[0](images)
    norms = [net.stages[0][1].state_dict() for net in (network, wanted)]
    assert all(torch.equal(norms[0][name], norms[1][name]) for name in norms[0])
    assert network.stages[1][1].num_batches_tracked == 2
    before = dict(wanted.named_parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


def test_each_sample_of_the_meta_half_goes_to_one_exit() -> None:
    """The published budget, 0.75: of 20 samples, three exits take 8, 6 and 6, the surest first."""
    shares_K = torch.tensor([0.75, 0.75**2, 0.75**3])
    confidence_KB = torch.rand(3, 20)
    rows_KB = taken(confidence_KB, shares_K / shares_K.sum())
    assert rows_KB.gt(0).sum(1).tolist() == [8, 6, 6]
    assert rows_KB.gt(0).sum(0).eq(1).all()
    torch.testing.assert_close(rows_KB.sum(1), torch.ones(3))
    for k in range(2):
        mine_B, later_B = rows_KB[k] > 0, rows_KB[k + 1 :].gt(0).any(0)
        assert confidence_KB[k][mine_B].min() >= confidence_KB[k][later_B].max()
    assert taken(confidence_KB[:, :2], shares_K / shares_K.sum()).gt(0).sum(1).tolist() == [0, 0, 2]


def test_it_learns_at_every_interval(batch: Batch) -> None:
    rule = WPN(hidden=5, interval=3)
    prepared(rule, dropping())
    learned = []
    for _ in range(5):
        rule.step(batch, 0.0)
        learned.append(int(rule.state()["adam.step.perceptron.0.weight"]))
    assert learned == [2, 2, 2, 4, 4]


@pytest.mark.parametrize(("size", "steps", "learned"), [(1, 1, 0), (2, 2, 2), (3, 2, 2)])
def test_the_smallest_batches(size: int, steps: int, learned: int) -> None:
    """A half without samples is no step, and nothing to learn on."""
    network = dropping()
    rule = WPN(hidden=5)
    prepared(rule, network)
    images = torch.randn(size, 1, 16, 16, dtype=torch.float64)
    outcome = rule.step(Batch(images, torch.zeros(size, dtype=torch.long), torch.arange(size), size), 0.0)
    assert network.stages[0][1].num_batches_tracked == steps
    assert rule.state().get("adam.step.perceptron.0.weight", 0) == learned
    assert outcome.logits_KBC.shape == (2, size, 5)
    assert outcome.stats_KB["weight"].shape == (2, size)


def test_the_outcome_is_of_the_batch_in_its_order(batch: Batch) -> None:
    network = dropping().eval()
    rule = WPN(epsilon=0.0)
    prepared(rule, network, lr=0.0)
    outcome = rule.step(batch, 0.0)
    logits_KBC = network(batch.images_BCHW)
    torch.testing.assert_close(outcome.logits_KBC, logits_KBC.detach())
    torch.testing.assert_close(outcome.loss, CrossEntropy()(logits_KBC, batch.targets_B).detach())


def test_weights_of_the_objective_are_multiplied(network: EarlyExitNet, batch: Batch) -> None:
    found = []
    for objective in (dynamic(), PowerSqrt()):
        rule = WPN()
        prepared(rule, deepcopy(network), objective, lr=0.0)
        torch.manual_seed(0)
        found.append(rule.step(batch, 0.0).stats_KB["weight"])
    own = dynamic().terms(network(batch.images_BCHW[:4]), batch.targets_B[:4]).stats_KB["weight"]
    torch.testing.assert_close(found[0][:, :4], own * found[1][:, :4])
    torch.testing.assert_close(found[1].mean(0), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("place", [0, 6])
def test_what_is_not_finite_reaches_neither_network(batch: Batch, place: int) -> None:
    network = dropping()
    rule = WPN(hidden=5)
    bench = prepared(rule, network)
    rule.step(batch, 0.0)
    before = deepcopy([dict(network.named_parameters()), rule.predictor.state_dict()])
    batch.images_BCHW[place] = torch.nan
    rule.step(batch, 0.0)
    assert bench.broken
    for weights, kept in zip([dict(network.named_parameters()), rule.predictor.state_dict()], before, strict=True):
        assert all(torch.equal(weight, kept[name]) for name, weight in weights.items())


def test_an_optimiser_whose_next_step_is_not_known() -> None:
    network = dropping()
    with pytest.raises(UsageError, match="not for Adagrad"):
        WPN().prepare(Workbench(network, network, CrossEntropy(), torch.optim.Adagrad(network.parameters())))


class Doubled(torch.autograd.Function):
    """Without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = Doubled.apply(super().forward(x))
        return doubled


def test_a_network_that_cannot_be_differentiated_forwards(batch: Batch) -> None:
    network = EarlyExitNet([nn.Flatten(), nn.Linear(256, 4)], [Doubling(256, 5), nn.Linear(4, 5)]).double()
    rule = WPN()
    prepared(rule, network)
    with pytest.raises(UsageError, match=r"it cannot this one: You must implement the jvp function .* another rule"):
        rule.step(batch, 0.0)


def test_the_published_settings() -> None:
    assert build(Spec("wpn")).settings() == {
        "epsilon": 0.8, "centre": "col", "p": 0.75, "inputs": "loss", "hidden": 500, "layers": 1, "interval": 1,
        "meta_lr": 1e-4, "meta_weight_decay": 1e-4,
    }  # fmt: skip
