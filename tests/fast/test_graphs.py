"""Graphs are the network. Without a GPU a stand-in has the real ones' trap: memory that every pass overwrites."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from offramp.backbones import msdnet
from offramp.errors import UsageError
from offramp.fast import Graphs, training_form
from offramp.network import EarlyExitNet
from offramp.rules.dfs import DFS
from offramp.rules.gradient_equilibrium import GradientEquilibrium

STEPS = 4


class StandIn:
    """Called as `torch.cuda.make_graphed_callables` is; nothing is captured, but what is given lies in fixed memory."""

    def __init__(self) -> None:
        self.captured: list[torch.Size] = []
        self.runs = 0

    def __call__(
        self, function: Callable[..., Tensor], samples: tuple[Tensor, ...], allow_unused_input: bool
    ) -> Callable[..., Tensor]:
        assert allow_unused_input
        assert not torch.is_autocast_cache_enabled()
        kept_images, *parameters = samples
        for _ in range(3):
            outputs = function(kept_images, *parameters)
        self.captured.append(kept_images.shape)
        kept_logits = outputs.detach().clone()
        kept_gradients: list[Tensor | None] = [torch.empty_like(p) for p in parameters]
        stand_in, cast = self, torch.is_autocast_enabled("cpu")

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, *given: Tensor) -> Tensor:
                for kept, new in zip(samples, given, strict=True):
                    if kept.data_ptr() != new.data_ptr():
                        assert not kept.requires_grad
                        kept.copy_(new)
                stand_in.runs += 1
                with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cast, cache_enabled=False):
                    stand_in.outputs = function(*samples)
                kept_logits.copy_(stand_in.outputs)
                for gradient in kept_gradients:
                    if gradient is not None:
                        gradient.fill_(float("nan"))  # a forward pass may use the memory of gradients
                return kept_logits.detach()

            @staticmethod
            def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
                found = torch.autograd.grad(stand_in.outputs, parameters, gradient, allow_unused=True)
                for i, new in enumerate(found):
                    if new is None:
                        kept_gradients[i] = None
                    else:
                        kept_gradients[i].copy_(new)
                return None, *(None if kept is None else kept.detach() for kept in kept_gradients)

        return Replay.apply


def small() -> EarlyExitNet:
    torch.manual_seed(0)
    net = msdnet(
        exits=3,
        num_classes=4,
        damping=True,
        base=1,
        step=1,
        step_mode="even",
        growth=4,
        growth_factors=(1, 2),
        bottleneck_factors=(1, 2),
        channels=8,
        image_size=16,
        in_channels=1,
    )
    return net.train()


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, 1, 16, 16)


def loss_of(logits_KBC: Tensor) -> Tensor:
    return logits_KBC.float().square().sum((1, 2)) @ torch.arange(1.0, len(logits_KBC) + 1)


def train(network: EarlyExitNet, forward: Callable[[Tensor], Tensor], batches: list[Tensor]) -> list[Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    given = []
    for batch in batches:
        optimizer.zero_grad()
        logits = forward(batch)
        loss_of(logits).backward()
        optimizer.step()
        given.append(logits.detach())
    return given


def test_steps_are_those_of_the_network() -> None:
    net = small()
    twin, capture = deepcopy(net), StandIn()
    batches = [images(batch) for batch in (5, 5, 5, 2, 5, 5, 2)]
    before = [batch.clone() for batch in batches]
    form = Graphs(net, capture)
    ours, theirs = train(net, form, batches), train(twin, twin, batches)
    assert capture.captured == [batches[0].shape]  # the last batch of an epoch comes alone, and runs as it is
    assert capture.runs == 4
    for one, other in zip(ours, theirs, strict=True):  # all of them at the end: no pass overwrote what another gave
        assert torch.equal(one, other)
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=0, atol=0)  # what batch norm counted, too
    assert all(map(torch.equal, batches, before))


def test_random_numbers_are_not_used_up_by_capturing() -> None:
    net = small()
    net.exits[0].add_module("drop", nn.Dropout(0.5))
    twin = deepcopy(net)
    batches = [images() for _ in range(STEPS)]
    for network, form in ((net, Graphs(net, StandIn())), (twin, twin)):
        torch.manual_seed(1)
        train(network, form, batches)
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_gradients_add_up_over_passes() -> None:
    net = small()
    twin = deepcopy(net)
    form, batches = Graphs(net, StandIn()), [images() for _ in range(STEPS)]
    for network, forward in ((net, form), (twin, twin)):
        train(network, forward, batches)
        network.zero_grad()  # so that autograd takes the graph's own
    for batch in batches:
        loss_of(form(batch)).backward()
        loss_of(twin(batch)).backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("rule", [DFS(0.3, head="rest"), GradientEquilibrium()])
def test_links_are_part_of_what_is_captured(rule: DFS) -> None:
    net = small()
    twin, capture = deepcopy(net), StandIn()
    form, batches = Graphs(net, capture), [images() for _ in range(3)]
    for link in (net.link, rule.link, net.link):
        net.link = twin.link = link
        train(net, form, batches)
        train(twin, twin, batches)
        torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert len(capture.captured) == 2
    assert capture.runs == 2 + 2 + 3


def test_autocast_is_part_of_what_is_captured_and_keeps_no_weights() -> None:
    net = small()
    twin, capture = deepcopy(net), StandIn()
    form, batch = Graphs(net, capture), images()
    for precise in (True, True, False, False, False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            assert torch.equal(form(batch), twin(batch))
    assert len(capture.captured) == 2


@pytest.mark.parametrize("what", ["evaluation", "no gradients", "hook", "images with gradient"])
def test_whatever_is_no_training_step_runs_the_network(what: str) -> None:
    net, capture = small(), StandIn()
    form, batch = Graphs(net, capture), images()
    train(net, form, [batch] * 3)
    runs, heard = capture.runs, []
    if what == "evaluation":
        net.eval()
    elif what == "hook":
        net.exits[1].register_forward_hook(lambda *_: heard.append(1))
    elif what == "images with gradient":
        batch = batch.clone().requires_grad_()
    twin = deepcopy(net)
    with torch.set_grad_enabled(what != "no gradients"):
        assert torch.equal(form(batch), twin(batch))
    assert capture.runs == runs
    assert len(heard) == 2 * (what == "hook")


def test_a_norm_that_no_longer_trains_and_weights_that_moved_are_captured_anew() -> None:
    net = small()
    twin, capture = deepcopy(net), StandIn()
    form, batches = Graphs(net, capture), [images() for _ in range(3)]
    train(net, form, batches)
    train(twin, twin, batches)
    for network in (net, twin):
        norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
        norm.eval()
    train(net, form, batches)
    train(twin, twin, batches)
    for network in (net, twin):
        weight = next(network.parameters())
        weight.data = weight.data * 2
    train(net, form, batches)
    train(twin, twin, batches)
    for network in (net, twin):
        next(network.parameters()).requires_grad_(False)
    train(net, form, batches)
    train(twin, twin, batches)
    assert len(capture.captured) == 4
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("what", ["the pass before", "twice"])
def test_a_backward_pass_whose_memory_is_gone_is_refused(what: str) -> None:
    net = small()
    form, batch = Graphs(net, StandIn()), images()
    train(net, form, [batch] * 2)
    loss = loss_of(form(batch))
    if what == "twice":
        loss.backward(retain_graph=True)
    else:
        form(batch)
    with pytest.raises(UsageError, match="once through the last forward pass"):
        loss.backward()


def test_a_network_that_cannot_be_captured_is_left_as_it_was() -> None:
    def capture(function: Callable[..., Tensor], samples: tuple[Tensor, ...], allow_unused_input: bool) -> None:
        function(*samples)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    net = small()
    form, batch = Graphs(net, capture), images()
    form(batch)
    before = deepcopy(net.state_dict())
    with pytest.raises(UsageError, match=r"capturing\. Use form plain"):
        form(batch)
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(UsageError, match="for a CUDA GPU, not for cpu"):
        training_form(small(), "graphs", torch.device("cpu"))
    assert isinstance(training_form(small(), "graphs", torch.device("cuda")), Graphs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_real_graphs_are_the_network_too(precision: str) -> None:
    net = small().cuda()
    twin = deepcopy(net)
    form = training_form(net, "graphs", torch.device("cuda"))
    batches = [images(batch).cuda() for batch in (5, 5, 5, 2, 5, 5)]
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        ours, theirs = train(net, form, batches), train(twin, twin, batches)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(net.state_dict(), twin.state_dict())
