"""What a trace must not bake in."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from offramp.backbones.attached import attach
from offramp.errors import UsageError
from offramp.graphs.tracing import trace
from offramp.network import EarlyExitNet

SHAPE = (3, 8, 8)


class Body(nn.Module):
    """Two convolutions, something between, a Linear."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.between = between or nn.Identity()
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.between(self.first(x))).mean((2, 3)))


class Mode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 1) if self.training else self.inner(x * 2)


class CountsImages(Mode):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 3) if x.shape[0] == 1 else self.inner(x)


class LooksAtValues(Mode):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.abs().sum() > 0 else self.inner(-x)


class DrawsInPython(Mode):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + torch.rand(1)) if self.training else self.inner(x)


class Drops(Mode):
    """Layer drop, in evaluation too, by a generator that is not torch's: a trace sees one outcome."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x if self.draw() < 0.5 else self.inner(x * 2)


class OtherWeights(Mode):
    """The same operations on another parameter, and more parameters in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * (self.one if self.training else self.other))


class FurtherWeights(OtherWeights):
    def forward(self, x: Tensor) -> Tensor:
        _ = self.one
        return self.inner(x * self.one * (self.other if self.training else self.one))


class OtherConstant(Mode):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * torch.tensor(2.0 if self.training else 3.0))


class WithoutGradients(Mode):
    """A frozen part: fx runs through the decorator and keeps nothing of it."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 2)


class WithAutocast(Mode):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x.flatten(2) @ x.flatten(2).mT).float()[:, :, :1, None] + x


class WithoutAutocast(Mode):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.inner(x.float().flatten(2) @ x.float().flatten(2).mT)[:, :, :1, None] + x


class LooksAtShapes(Mode):
    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *sides = x.shape
        assert channels == 4
        if sides[0] % 3:
            x = functional.pad(x, (0, 3 - sides[1] % 3, 0, 3 - sides[0] % 3))
        pieces = [x[:, :, i] for i in range(len(x[0, 0]))]
        x = torch.stack(pieces, 2).reshape(batch, x.shape[1], -1).view(batch, channels, 9, -1)
        return self.inner(x[:, :, : sides[0], : sides[1]])


class Table(Mode):
    """A parameter indexed by a buffer: fx would compute that once and for all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4))
        self.register_buffer("index", torch.tensor([3, 2, 1, 0]), persistent=False)
        self.beside = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.table[self.index][:, None, None] * self.beside)


def both(model: nn.Module, number: int, training: bool) -> tuple[Tensor, Tensor]:
    network = attach(model, ["between"], image_shape=SHAPE).train(training)
    images, found = torch.randn(number, *SHAPE), []
    for run in (model.train(training), lambda x: network(x)[-1]):
        torch.manual_seed(0)
        found.append(run(images))
    return found[0], found[1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize(
    "between",
    [
        *(Mode, LooksAtValues, DrawsInPython, LooksAtShapes, Table),
        *(OtherWeights, FurtherWeights, OtherConstant, WithoutGradients, WithAutocast, WithoutAutocast),
    ],
    ids=lambda kind: kind.__name__,
)
def test_parts_do_what_the_model_does(between: type[nn.Module], number: int, training: bool) -> None:
    torch.testing.assert_close(*both(Body(between()), number, training))


@pytest.mark.parametrize("between", [Mode, CountsImages, LooksAtValues, OtherWeights, FurtherWeights, OtherConstant])
def test_what_cannot_be_traced_is_a_leaf_and_no_more(between: type[nn.Module]) -> None:
    traced = trace(nn.Sequential(nn.Sequential(nn.Identity(), between()), nn.Flatten(), nn.Linear(192, 2)), SHAPE)
    assert traced.leaves.keys() == {"0.1"}


def test_gradients_that_are_switched_off_stay_off() -> None:
    model = Body(WithoutGradients())
    network = attach(model, ["between"], image_shape=SHAPE)
    network(torch.randn(2, *SHAPE))[-1].sum().backward()
    assert network.get_parameter("stages.0.first.weight").grad is None
    assert trace(model, SHAPE).leaves == {"between": "it switches gradients off or on"}


@pytest.mark.parametrize("between", [WithAutocast, WithoutAutocast])
def test_autocast_is_switched_where_the_model_does_it(between: type[nn.Module]) -> None:
    model = Body(between()).eval()
    network, images = attach(model, ["between"], image_shape=SHAPE), torch.randn(2, *SHAPE)
    assert trace(model, SHAPE).leaves == {"between": "it switches autocast on or off"}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(images)[-1], model(images))


@pytest.mark.parametrize("draw", [lambda: random.random(), lambda: float(np.random.rand())], ids=["python", "numpy"])
def test_what_draws_from_other_generators_is_a_leaf_too(draw: Callable[[], float]) -> None:
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
    network = attach(Body(Drops(draw)), ["between"], image_shape=SHAPE)
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]) == before
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert len({float(network(images).sum()) for _ in range(30)}) == 2


@pytest.mark.parametrize("between", [LooksAtShapes, Table])
def test_what_the_shapes_decide_is_traced(between: type[nn.Module]) -> None:
    assert not trace(Body(between()), SHAPE).leaves


def test_a_table_keeps_its_gradient_and_its_buffers_their_place() -> None:
    model = Body(Table())
    network = attach(model, ["between"], image_shape=SHAPE)
    network(torch.randn(2, *SHAPE))[-1].sum().backward()
    table = network.get_parameter("stages.0.between.table")
    assert table.grad is not None
    assert table.grad.abs().sum() > 0
    assert not any("index" in name or "beside" in name or "constant" in name for name in network.state_dict())
    assert {name.rsplit(".", 1)[1] for name, _ in network.stages[0].named_buffers()} >= {"index", "beside"}


class TorchTutorial(nn.Module):
    """Dropout as a function, in the model's own forward, as in PyTorch's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x), inplace=True)
        x = functional.relu(self.conv2(x))
        x = functional.relu(self.fc1(x.view(x.size(0), -1)))
        x = functional.dropout(x, 0.4, training=self.training)
        return self.fc2(x)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_as_a_function_knows_its_mode(training: bool) -> None:
    model = TorchTutorial().train(training)
    network = attach(model, ["conv2"], image_shape=SHAPE)
    images, found = torch.randn(64, *SHAPE), []
    for run in (model, lambda x: network(x)[-1]):
        torch.manual_seed(0)
        found.append(run(images))
    torch.testing.assert_close(*found)
    assert torch.equal(network(images)[-1], network(images)[-1]) != training
    # What a trace alone gives: the mode it was made in.
    alone = fx.symbolic_trace(model.train()).eval()
    assert not torch.equal(alone(images), alone(images))


class OwnMode(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


class OwnControlFlow(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.abs().mean() > 0 else -x)


class OwnRandomness(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn(()))


class OwnRandomnessInPython(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * random.random())


class SetsState(Body):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class OwnGradients(Body):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.between(self.first(x))
        return self.fc(self.second(x).mean((2, 3)))


class OwnAutocast(Body):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class LooksAtGradients(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else -super().forward(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OwnMode, "OwnMode cannot be cut: its own forward does other things in training mode"),
        (
            OwnControlFlow,
            r"OwnControlFlow cannot be cut: torch.fx cannot trace its own forward, line \d+ of .*test_tracing",
        ),
        (OwnRandomness, "OwnRandomness cannot be cut: its own forward draws random numbers"),
        (OwnRandomnessInPython, "OwnRandomnessInPython cannot be cut: its own forward draws random numbers"),
        (SetsState, "SetsState cannot be cut: its own forward sets self.calls, so calls may differ"),
        (OwnGradients, r"cannot trace its own forward, line \d+ of .* \(it switches gradients off or on\)"),
        (OwnAutocast, r"cannot trace its own forward, line \d+ of .* \(it switches autocast on or off\)"),
        (LooksAtGradients, "LooksAtGradients cannot be cut: its parts give other logits"),
    ],
)
def test_a_model_that_cannot_be_traced_says_why(kind: type[nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attach(kind(), ["first"], image_shape=SHAPE)


def test_images_that_the_model_cannot_read_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Body does not run on 1 images of \[4, 8, 8\]: .*channels"):
        attach(Body(), ["first"], image_shape=(4, 8, 8))


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    drawn = random.getstate(), np.random.get_state(legacy=False)
    network: EarlyExitNet = attach(model, ["1"], image_shape=SHAPE)
    assert model.training
    assert network.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in network.parameters()}
    assert random.getstate() == drawn[0]
    assert np.random.get_state(legacy=False)["state"]["pos"] == drawn[1]["state"]["pos"]
