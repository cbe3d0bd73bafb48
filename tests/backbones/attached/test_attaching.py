"""New exits, the model's own head, and the damping neuron where there is none."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from offramp.backbones.attached import attach
from offramp.errors import UsageError
from offramp.network import NO_NEURON
from offramp.objectives import CrossEntropy, Damping, DiscardThreshold, PowerSqrt, dynamic

SHAPE = (3, 16, 16)


def net(*head: nn.Module) -> nn.Sequential:
    trunk = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*trunk, nn.Conv2d(6, 8, 3, padding=1), *head)


def with_linear(bias: bool = True) -> nn.Sequential:
    return net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=bias))


def without_linear() -> nn.Sequential:
    return net(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def lazy() -> nn.Module:
    return net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))


def not_finite() -> nn.Module:
    model = with_linear()
    nn.init.constant_(model[0].bias, torch.nan)
    return model


def hooked() -> nn.Module:
    model = with_linear()
    model.register_forward_hook(lambda module, given, found: found * 2)
    return model


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        (nn.Identity, {}, "attach takes a model, not the class Identity; build it first"),
        ("resnet18", {}, "attach takes a torch.nn.Module, not 'resnet18'"),
        (lazy(), {}, "Sequential has lazy modules, such as 7; run it once on images first"),
        (with_linear().to("meta"), {}, "Sequential is on the device meta and has no weights; give it some"),
        (
            not_finite(),
            {},
            "Sequential gives logits that are not finite for random images. Its weights are not, such as 0.bias",
        ),
        (
            hooked(),
            {},
            "Sequential has hooks of its own, which no part would run; remove them or put it into a Sequential",
        ),
        (attach(with_linear(), ["1"], image_shape=SHAPE), {}, "has exits already"),
        (with_linear(), {"image_shape": 16}, r"image_shape must be \(channels, height, width\), not 16"),
        (with_linear(), {"image_shape": "16"}, r"image_shape must be \(channels, height, width\), not '16'"),
        (with_linear(), {"at": ""}, "`at` names no module to cut after"),
        (with_linear(), {"at": "1,,2"}, "`at` names no module to cut after"),
    ],
)
def test_what_is_no_model_or_no_cut_is_refused_in_one_line(model: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        attach(model, **({"at": ["1"], "image_shape": SHAPE} | asked))
    assert "\n" not in str(caught.value)


def test_a_compiled_model_is_refused() -> None:
    """A test of its own: made where tests are collected, it would cost every process seconds."""
    with pytest.raises(UsageError, match=r"is compiled; attach to model\._orig_mod and compile the network"):
        attach(torch.compile(with_linear()), ["1"], image_shape=SHAPE)


def test_inference_mode_whose_tensors_nobody_can_train_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(UsageError, match=r"call it outside of torch\.inference_mode\(\)"):
        attach(with_linear(), ["1"], image_shape=SHAPE)


def test_names_may_stand_apart() -> None:
    network = attach(with_linear(), " 1, 2 ", image_shape=SHAPE)
    assert network.origin is not None
    assert network.origin["at"] == ["1", "2"]


@pytest.mark.parametrize("bias", [True, False])
def test_the_neuron_starts_at_zero_and_can_learn(bias: bool) -> None:
    model, images = with_linear(bias), torch.randn(4, *SHAPE)
    network = attach(model, ["1"], damping=True, image_shape=SHAPE)
    logits = network(images)
    torch.testing.assert_close(logits[-1, :, :5], model(images))
    assert (logits[-1, :, 5] == 0).all()
    assert not (logits[0, :, 5] == 0).any()
    Damping(0.1)(logits, torch.tensor([0, 1, 2, 3])).backward()
    gradient = network.get_parameter("exits.1.7.weight").grad
    assert gradient is not None
    assert (gradient[5] != 0).any()


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(),
        DiscardThreshold(0.5),
        Damping(0.1),
        Damping((0.1, 0.2, 0.3)),
        PowerSqrt(0.1),
        PowerSqrt(0.1, root="batch"),
        dynamic(strength=0.1),
        dynamic(strength=0.1, normalisation="min-max"),
        dynamic(strength=0.1, normalisation="tanh", over="batch"),
        dynamic(strength=0.1, over="batch", with_gradient=True),
        dynamic(strength=0.1, applied_to="root", reverse=True),
        dynamic("damping", strength=0.1, applied_to="cross-entropy"),
    ],
    ids=str,
)
def test_an_exit_without_neuron_is_trained_by_cross_entropy_and_the_others_as_if_it_were_not_there(
    objective: Any,
) -> None:
    network = attach(without_linear().double(), ["1", "3"], damping=True, image_shape=SHAPE)
    assert network.num_exits == 3
    logits = network(torch.randn(4, *SHAPE).double()).detach().requires_grad_()
    targets = torch.tensor([0, 1, 2, 3])
    assert (logits[-1, :, 5] == NO_NEURON).all()
    terms = objective.terms(logits, targets)
    (gradient,) = torch.autograd.grad(terms.loss_KB.sum(), logits)
    assert gradient.isfinite().all()
    assert all(x.isfinite().all() for x in terms.stats_KB.values())
    assert (gradient[-1, :, 5] == 0).all()
    plain = CrossEntropy().terms(logits[-1:, :, :5], targets).loss_KB[0]
    if not isinstance(objective, DiscardThreshold):
        torch.testing.assert_close(terms.loss_KB[-1], plain)
    others = Damping((0.1, 0.2)) if objective == Damping((0.1, 0.2, 0.3)) else objective
    alone = others.terms(logits[:-1], targets)
    torch.testing.assert_close(terms.loss_KB[:-1], alone.loss_KB)
    (wanted,) = torch.autograd.grad(alone.loss_KB.sum(), logits)
    torch.testing.assert_close(gradient[:-1], wanted[:-1])
    push = objective.push(logits.detach(), targets, terms.stats_KB)
    assert push.isfinite().all()
    probability = logits[-1, :, :5].softmax(-1)[torch.arange(4), targets]
    wanted = 1 - probability
    if isinstance(objective, DiscardThreshold):
        wanted = wanted.masked_fill(probability > objective.threshold, 0)
    torch.testing.assert_close(push[-1], wanted)


def test_another_number_of_classes_gives_the_last_linear_fresh_weights_and_keeps_the_rest() -> None:
    model = net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5))
    network = attach(model, ["1"], num_classes=3, damping=True, image_shape=SHAPE)
    assert network(torch.randn(2, *SHAPE)).shape == (2, 2, 4)
    assert torch.equal(network.get_parameter("exits.1.7.weight"), model[7].weight)
    assert network.get_parameter("exits.1.9.weight").shape == (4, 7)
    assert (network.get_parameter("exits.1.9.weight") != 0).all()


def test_a_head_that_has_no_linear_is_replaced_for_another_number_of_classes() -> None:
    network = attach(without_linear(), ["1"], num_classes=3, image_shape=SHAPE)
    assert network(torch.randn(2, *SHAPE)).shape == (2, 2, 3)
    assert not any(name.startswith("stages.1.5") for name in network.state_dict())


class Tokens(nn.Module):
    """Patches as tokens, with a class token or without."""

    def __init__(self, with_class: bool) -> None:
        super().__init__()
        self.embed, self.block, self.after = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        if with_class:
            self.cls_token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        if hasattr(self, "cls_token"):
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.after(self.block(x).relu())
        return self.head(x[:, 0] if hasattr(self, "cls_token") else x.mean(1))


class ChannelsLast(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.block(self.embed(x).permute(0, 2, 3, 1)).relu())
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("head", ["pool", "deep"])
@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (lambda: with_linear(), {nn.AdaptiveAvgPool2d}),
        (lambda: Tokens(True), {nn.LayerNorm}),
        (lambda: Tokens(False), {nn.LayerNorm}),
        (lambda: ChannelsLast(False), {nn.LayerNorm, nn.AdaptiveAvgPool2d}),
    ],
    ids=["map", "class token", "tokens", "channels last"],
)
def test_an_exit_reads_what_it_is_given(make: Callable[[], nn.Module], kinds: set[type], head: Any) -> None:
    model = make()
    at = "1" if isinstance(model, nn.Sequential) else "block"
    network = attach(model, [at], damping=True, head=head, image_shape=SHAPE)
    assert network(torch.randn(2, *SHAPE)).shape == (2, 2, 6)
    found = {type(module) for module in network.exits[0].modules()}
    assert kinds <= found
    assert bool({nn.GELU, nn.BatchNorm2d} & found) == (head == "deep")


def test_tokens_are_read_by_the_class_token_or_their_mean() -> None:
    for with_class in (True, False):
        network = attach(Tokens(with_class), ["block"], image_shape=SHAPE)
        tokens = torch.randn(2, 16 + with_class, 8)
        moved = tokens.clone()
        moved[:, 0] += torch.randn(8)
        others = tokens.clone()
        others[:, 1] += torch.randn(8)
        head = network.exits[0]
        assert not torch.allclose(head(tokens), head(moved))
        assert torch.allclose(head(tokens), head(others)) == with_class


def test_what_a_stage_writes_into_is_not_what_the_exit_has_read() -> None:
    network = attach(net(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(512, 5)), ["2"], image_shape=SHAPE)
    carry = network.run_stage(0, (torch.randn(2, *SHAPE),))
    before = carry[0].clone()
    network.run_stage(1, carry)
    assert torch.equal(carry[0], before)
    assert (before < 0).any()
    attach(with_linear(), ["0", "2"], head="deep", image_shape=SHAPE)(torch.randn(4, *SHAPE)).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "wide"}, "head must be one of pool, deep, not 'wide'"),
        ({"damping": 1}, "damping must be true or false"),
        ({"num_classes": 0}, "num_classes must be a whole number"),
        ({"image_shape": (3, 16)}, r"image_shape must be \(channels, height, width\)"),
        ({"image_shape": None}, "Sequential does not say which images it is for; pass image_shape"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attach(with_linear(), ["1"], **{"image_shape": SHAPE, **arguments})


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.one(x)
        return self.fc(x.mean((2, 3))), x


def test_a_model_that_gives_more_than_logits_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Several gives a tuple for one image, not logits \[1, N\]"):
        attach(Several(), ["one"], image_shape=SHAPE)
    with pytest.raises(UsageError, match=r"Sequential gives a tensor \[1, 8, 8, 8\] for one image"):
        attach(net(), ["1"], image_shape=SHAPE)


@dataclasses.dataclass
class Output:
    logits: Tensor | None = None
    hidden: Tensor | None = None


@dataclasses.dataclass
class ModelOutput(OrderedDict[str, Any]):
    """As in Hugging Face's transformers: a dataclass and a dict, read by name or by place."""

    logits: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class OfAnotherLibrary(nn.Module):
    """A body and a head that both give objects, called by keyword alone."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.body, self.head, self.kind = net(), nn.Linear(8, 5), kind

    def forward(self, pixel_values: Tensor | None = None, *, labels: Tensor | None = None) -> Any:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        found = self.kind(hidden=self.body(pixel_values))
        return self.kind(logits=self.head(found.hidden.mean((2, 3))), hidden=found.hidden)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


class AsDict(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.body = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(images).logits}


@pytest.mark.parametrize(("kind", "said"), [(Output, "a Output"), (ModelOutput, "a dict"), (dict, "a dict")])
@pytest.mark.parametrize("at", ["auto", ["body.1"]])
def test_objects_with_logits_in_them_are_refused_with_the_way_out(kind: type, said: str, at: Any) -> None:
    """A dataclass was an error of torch's about the truth of a tensor."""
    model = OfAnotherLibrary(kind) if kind is not dict else AsDict(OfAnotherLibrary(Output))
    with pytest.raises(UsageError, match=f"gives {said} for one image, not logits .* such as its `logits`"):
        attach(model, at, image_shape=SHAPE)


@pytest.mark.parametrize("kind", [Output, ModelOutput])
def test_and_that_way_out_works(kind: type) -> None:
    model, images = Logits(OfAnotherLibrary(kind)), torch.randn(2, *SHAPE)
    network = attach(model, ["model.body.1"], image_shape=SHAPE)
    torch.testing.assert_close(network(images)[-1], model(images))


def with_lock() -> nn.Module:
    model = with_linear()
    model[2].lock = threading.Lock()
    return model


def with_history() -> nn.Module:
    model = with_linear()
    model[2].scaled = model[0].weight * 2
    return model


def buffer_with_history() -> nn.Module:
    model = with_linear()
    model.register_buffer("scaled", model[0].weight * 2)
    return model


def with_old_weight_norm() -> nn.Module:
    model = with_linear()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model[2])
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_lock, "2.lock is a lock; take it out before"),
        (with_history, "2.scaled is a tensor computed from others; detach it"),
        (buffer_with_history, "scaled is a tensor computed from others; detach it"),
        (with_old_weight_norm, "2.weight is a tensor computed from others; .* torch.nn.utils.parametrizations"),
    ],
)
def test_what_cannot_be_copied_is_named(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(UsageError, match=f"Sequential cannot be copied: {said}") as caught:
        attach(make(), ["1"], image_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_weights_with_a_parametrization_stay_so() -> None:
    model, images = with_linear(), torch.randn(2, *SHAPE)
    nn.utils.parametrizations.weight_norm(model[2])
    network = attach(model, ["1"], image_shape=SHAPE)
    network(images)[-1].sum().backward()
    wanted, found = model(images), network(images)[-1]
    wanted.sum().backward()
    torch.testing.assert_close(found, wanted)
    for name in ("original0", "original1"):
        own = network.get_parameter(f"stages.1.2.parametrizations.weight.{name}")
        torch.testing.assert_close(own.grad, model.get_parameter(f"2.parametrizations.weight.{name}").grad)


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_outputs_are_said_to_be_in_the_way(name: str, side: int) -> None:
    model = getattr(torchvision.models, name)(weights=None, init_weights=False)
    with pytest.raises(UsageError, match=r"does other things in training mode .* Build it with aux_logits=False\."):
        attach(model, image_shape=(3, side, side))


def test_other_threads_may_call_modules_meanwhile() -> None:
    """While it traces, torch.fx stands in the place of methods of all modules, for all threads."""
    model, images = with_linear().eval(), torch.randn(2, *SHAPE)
    wanted, over = model(images).detach(), threading.Event()

    def call() -> int:
        calls = 0
        while not over.is_set():
            assert torch.equal(model(images).detach(), wanted)
            calls += 1
        return calls

    with ThreadPoolExecutor(3) as pool:
        calling = [pool.submit(call) for _ in range(2)]
        try:
            for _ in range(10):
                attach(with_linear(), ["1"], image_shape=SHAPE)
        finally:
            over.set()
        assert all(calls.result() > 0 for calls in calling)


def test_threads_may_attach_at_once() -> None:
    models = [with_linear() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        networks = list(pool.map(lambda model: attach(model, ["1"], image_shape=SHAPE), models))
    images = torch.randn(2, *SHAPE)
    for model, network in zip(models, networks, strict=True):
        torch.testing.assert_close(network(images)[-1], model(images))


def test_double_precision_stays() -> None:
    network = attach(with_linear().double(), ["1"], damping=True, image_shape=SHAPE)
    assert network(torch.randn(2, *SHAPE, dtype=torch.float64)).dtype == torch.float64
