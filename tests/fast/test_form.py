"""A form is its network: whatever is asked of it, and however the network is changed meanwhile."""

import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.fast import Merged, training_form
from offramp.network import EarlyExitNet, plain_link


def unit(inputs: int, outputs: int, size: int = 1, **settings: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, "bias": False} | settings)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(unit(channels, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class Fork(nn.Module):
    """Gives two maps, of which the exit reads the last; both are units of the same map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = unit(3, 4), unit(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x)


class Meeting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = unit(8, 3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y, self.unit(torch.cat([x, y], 1))], 1)


def small(*stages: nn.Module, exits: list[nn.Module] | None = None) -> EarlyExitNet:
    network = EarlyExitNet(stages or [Fork(), Meeting()], exits or [head(4), head(7)], num_classes=2)
    return network.double()


def images(batch: int = 4, side: int = 6) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=torch.float64)


def equal(form: Merged, x: Tensor, twin: EarlyExitNet, **tolerance: float) -> None:
    """The form and the same network of modules: logits, gradients, what norms keep."""
    network = form.network
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(0)
    found = form(ours)
    torch.manual_seed(0)
    wanted = twin(theirs)
    torch.testing.assert_close(found, wanted, **tolerance)
    weights = torch.randn(found.shape)
    for module, logits in ((network, found), (twin, wanted)):
        module.zero_grad()
        (logits * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)
    for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, **tolerance)
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()), **tolerance)


def both(network: EarlyExitNet) -> tuple[Merged, EarlyExitNet]:
    return Merged(network), copy.deepcopy(network)


def test_other_batches_and_image_sizes() -> None:
    form, twin = both(small())
    for batch, side in [(4, 6), (3, 6), (1, 6), (2, 9), (4, 6)]:
        equal(form, images(batch, side), twin)
    assert not form.why_not


def test_one_exit_alone_reaches_the_same_parameters() -> None:
    network = small()
    form, twin, x = Merged(network), copy.deepcopy(network), images()
    for k in range(2):
        found = network.exit_logits(x, form.stages, form.exits)[k]
        wanted = twin.exit_logits(x)[k]
        ours = torch.autograd.grad(found.square().sum(), [*network.parameters()], allow_unused=True)
        theirs = torch.autograd.grad(wanted.square().sum(), [*twin.parameters()], allow_unused=True)
        assert [g is None for g in ours] == [g is None for g in theirs]
        assert any(g is None for g in ours)
        torch.testing.assert_close([g for g in ours if g is not None], [g for g in theirs if g is not None])


def test_evaluation_and_no_gradients_run_the_network_itself() -> None:
    form, twin = both(small())
    x = images()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(form(x), twin(x))
    equal(form, x, twin)
    form.network.eval()
    assert torch.equal(form(x), form.network(x))


def test_second_backward_passes() -> None:
    form = Merged(small())
    parameters = [*form.network.parameters()]
    loss = form(images()).square().sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, first, again))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_of_gradients_are_refused() -> None:
    form, x = Merged(small()), images().requires_grad_()
    with pytest.raises(UsageError, match="use form plain"):
        torch.autograd.grad(form(x).sum(), x, create_graph=True)


def test_a_hook_is_called_whenever_it_was_added() -> None:
    network = small()
    form, x, called = Merged(network), images(), []
    twin = copy.deepcopy(network)
    equal(form, x, twin)
    for module in (network, network.stages[0].one[0], network.exits[1]):
        for add in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = add(lambda *_: called.append(1))
            equal(form, x, twin)
            handle.remove()
            assert called.pop()
            assert not called
    with nn.modules.module.register_module_forward_hook(lambda *_: called.append(1)):
        form(x)
    assert len(called) > 10


def set_weight(network: EarlyExitNet) -> None:
    network.stages[0].one[0].weight = nn.Parameter(torch.randn(4, 3, 1, 1, dtype=torch.float64))


def set_norm(network: EarlyExitNet) -> None:
    network.stages[0].one[1] = nn.BatchNorm2d(4, eps=0.1, momentum=0.5).double()


def set_parametrization(network: EarlyExitNet) -> None:
    nn.utils.parametrizations.weight_norm(network.stages[0].one[0])


def set_spectral_norm(network: EarlyExitNet) -> None:
    nn.utils.parametrizations.spectral_norm(network.stages[1].unit[0])


CHANGES: dict[str, Callable[[EarlyExitNet], Any]] = {
    "a weight replaced": set_weight,
    "a norm replaced": set_norm,
    "weight norm": set_parametrization,
    "spectral norm": set_spectral_norm,
    "a module added": lambda n: n.stages[0].one.append(nn.Tanh()),
    "momentum": lambda n: setattr(n.stages[0].one[1], "momentum", 0.9),
    "no momentum": lambda n: setattr(n.stages[0].one[1], "momentum", None),
    "no averages": lambda n: setattr(n.stages[0].one[1], "track_running_stats", False),
    "norm in evaluation": lambda n: n.stages[0].one[1].eval(),
    "stage in evaluation": lambda n: n.stages[0].eval(),
    "frozen weight": lambda n: n.stages[0].one[0].weight.requires_grad_(False),
    "frozen norm": lambda n: n.stages[0].one[1].requires_grad_(False),
    "frozen first stage": lambda n: n.stages[0].requires_grad_(False),
    "frozen second stage": lambda n: n.stages[1].requires_grad_(False),
    "frozen exit": lambda n: n.exits[0].requires_grad_(False),
    "weights changed": lambda n: n.load_state_dict({k: v + 1 for k, v in n.state_dict().items()}),
    "padding mode": lambda n: setattr(n.stages[1].unit[0], "padding_mode", "reflect"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_changes_of_modules(name: str, when: str) -> None:
    network = small()
    if when == "before":
        CHANGES[name](network)
    form, twin, x = Merged(network), copy.deepcopy(network), images()
    equal(form, x, twin)
    if when == "after":
        torch.manual_seed(0)
        CHANGES[name](network)
        torch.manual_seed(0)
        CHANGES[name](twin)
        twin.load_state_dict(network.state_dict())
    equal(form, x, twin)


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), Writes()])
@pytest.mark.parametrize("where", ["exit", "stage"])
def test_maps_that_others_write_into_leave_the_network_as_it_is(first: nn.Module, where: str) -> None:
    """In a network of modules the exit's writing is seen by the next stage."""
    start = nn.Sequential(unit(3, 4), nn.Conv2d(4, 4, 3))
    stages, exits = [start, unit(4, 3)], [nn.Sequential(Given(lambda p, x: x.mean((2, 3))), nn.Linear(4, 2)), head(3)]
    (exits[0] if where == "exit" else stages[1]).insert(0, first)
    form, twin = both(small(*stages, exits=exits))
    equal(form, images(), twin)
    assert "writes into a map" in form.why_not["network"]


def test_an_exit_that_writes_is_noticed_whenever_it_begins_to() -> None:
    network = small(nn.Sequential(unit(3, 4), nn.Conv2d(4, 4, 3)), unit(4, 3), exits=[head(4), head(3)])
    network.exits[0].insert(0, nn.ReLU())
    form, twin = both(network)
    equal(form, images(), twin)
    assert not form.why_not
    for inplace in (True, False, True):
        for net in (network, twin):
            net.exits[0][0].inplace = inplace
        equal(form, images(), twin)
        assert bool(form.why_not) == inplace
    for net in (network, twin):
        net.exits[0][0] = nn.Dropout(0.5, inplace=True).eval()  # writes in training alone
    equal(form, images(), twin)
    for net in (network, twin):
        net.exits[0][0].train()
    equal(form, images(), twin)
    assert "writes into a map" in form.why_not["network"]


def test_a_stage_or_an_exit_in_another_s_place() -> None:
    network = small(unit(3, 4), unit(4, 3), exits=[head(4), head(3)])
    form, twin = both(network)
    equal(form, images(), twin)
    for new, parts in ((unit(4, 3, 3), "stages"), (head(3), "exits")):
        getattr(network, parts)[1] = new.double()
        equal(form, images(), copy.deepcopy(network))


def test_images_that_do_not_fit_leave_no_mark() -> None:
    form, twin = both(small())
    with pytest.raises(RuntimeError, match="type"):
        form(images().float())
    equal(form, images(), twin)
    assert form.stages[0]._plans


class Scaled(nn.Module):
    """With values of its own that its code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.scale, self.shifts, self.calls = unit(3, 4), 1.0, [0.0], 0

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) * self.scale + self.shifts[0]


def test_values_that_a_module_s_code_reads() -> None:
    network = small(Scaled(), unit(4, 4), exits=[head(4), head(4)])
    form, twin = both(network)
    equal(form, images(), twin)
    plans = form.stages[0]._plans.copy()
    for net in (network, twin):
        net.stages[0].scale = 3.0
    equal(form, images(), twin)
    for net in (network, twin):
        net.stages[0].shifts[0] = 2.0
    equal(form, images(), twin)
    assert form.stages[0]._plans.keys() == plans.keys()
    assert form.stages[0]._plans != plans
    plans = form.stages[0]._plans.copy()
    network.stages[0].scale = float("3.0")  # the same
    equal(form, images(), twin)
    assert form.stages[0]._plans == plans


def test_what_a_module_changes_by_itself_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counts(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) + self.calls

    tried = []
    monkeypatch.setattr("offramp.fast.form.why_as_it_is", lambda *given: tried.append(given))
    form, twin = both(small(Counts(), exits=[head(4)]))
    for _ in range(3):
        equal(form, images(), twin)
    assert len(tried) == 1
    assert "changes itself" in form.why_not["stages.0"]


class Given(nn.Module):
    """Gives what a function makes of its unit's map."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.unit, self.make = unit(3, 3), make
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def forward(self, *maps: Any) -> Any:
        return self.make(self, *maps)


def count(part: Given, x: Tensor) -> Tensor:
    part.count += 1
    return part.unit(x) * part.count


def remember(part: Given, x: Tensor) -> Tensor:
    part.last = part.unit(x)
    return part.last * 2


def second_of_list(part: Given, x: Any) -> Any:
    return part.unit(x[1] if isinstance(x, list) else x)


REFUSED: dict[str, list[Callable[..., Any]]] = {  # test_plan.py has more
    "values": [lambda p, x: p.unit(x) if x.sum() > 0 else p.unit(-x)],
    "a list": [lambda p, x: [x, p.unit(x)], second_of_list],
    "a number beside": [lambda p, x: (2, p.unit(x)), lambda p, n, x: p.unit(x) * n],
    "its own counter": [count],
    "its own memory": [remember],
    "a write that is read": [lambda p, x: (lambda y: (y.add_(1), y)[1])(p.unit[0](p.unit(x)))],
    "Python's random numbers": [lambda p, x: p.unit(x) * (1 + random.randrange(1))],
    "NumPy's random numbers": [lambda p, x: p.unit(x) * float(1 + 0 * np.random.random())],
    "several tensors": [lambda p, x: p.unit(x).chunk(3, 1)[1].expand(-1, 3, -1, -1)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_runs_as_it_is(name: str) -> None:
    stages = [Given(make) for make in REFUSED[name]]
    exits = [nn.Sequential(Given(second_of_list), nn.Flatten(), nn.Linear(108, 2)) for _ in stages]
    form, twin = both(small(*stages, exits=exits))
    equal(form, images(), twin)
    assert set(form.why_not) & {"stages.0", "network"}


def view(part: Given, x: Tensor) -> Tensor:
    return x.view(x.size(0), -1)


@pytest.mark.parametrize("make", [view, lambda p, x: view(p, p.unit(x)), lambda p, x: view(p, p.unit(x)).view_as(x)])
def test_views_of_maps_work_as_in_the_module(make: Callable[..., Any]) -> None:
    exits = [nn.Sequential(Given(make), nn.Flatten(), nn.Linear(108, 2))]
    form, twin = both(small(unit(3, 3), exits=exits))
    equal(form, images(), twin)


def test_inputs_that_are_no_maps() -> None:
    stages = [nn.Sequential(unit(3, 2), nn.Flatten(), nn.Linear(72, 5)), nn.Linear(5, 4)]
    form, twin = both(small(*stages, exits=[nn.Linear(5, 2), nn.Linear(4, 2)]))
    equal(form, images(), twin)


@pytest.mark.parametrize("dropout", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.RReLU()])
@pytest.mark.parametrize("place", ["map", "exit"])
def test_random_numbers_are_the_modules(dropout: nn.Module, place: str) -> None:
    """The same bits of the same generator fall on the same values."""
    stage, end = nn.Sequential(unit(3, 4), unit(4, 4)), head(4)
    if place == "map":
        stage.insert(1, dropout)
    else:
        end = nn.Sequential(dropout, nn.Flatten(), nn.Linear(144, 2))
    form, twin = both(small(stage, exits=[end]))
    for _ in range(2):
        equal(form, images(), twin)
    torch.manual_seed(3)
    form(images(3))
    ours = torch.get_rng_state()
    torch.manual_seed(3)
    twin(images(3))
    assert torch.equal(ours, torch.get_rng_state())


def test_one_value_a_channel_is_an_error_as_in_the_module() -> None:
    form, twin = both(small(unit(3, 4), exits=[head(4)]))
    x = images(1, 1)
    for module in (form, twin):
        with pytest.raises(ValueError, match=r"single value|more than 1 value"):
            module(x)
    twin.load_state_dict(form.network.state_dict())
    equal(form, images(2, 1), twin)


def test_types_that_do_not_fit_are_an_error_as_in_the_module() -> None:
    form = Merged(small())
    for x in (images().float(), images().bfloat16()):
        with pytest.raises(RuntimeError, match="type"):
            form(x)


def test_networks_are_copied_and_pickled_while_a_form_exists() -> None:
    form, twin = both(small())
    equal(form, images(), twin)
    buffer = io.BytesIO()
    torch.save(form.network, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    for network in (again, copy.deepcopy(form.network)):
        equal(Merged(network), images(), copy.deepcopy(twin))


def test_links_are_called_between_parts() -> None:
    network = small()

    def link(k: int, K: int, carry: Any, reads: int) -> Any:
        return plain_link(k, K, tuple(x.detach() for x in carry), reads)

    network.link = link
    form, twin = both(network)
    equal(form, images(), twin)
    network.zero_grad()
    form(images())[1].sum().backward()
    assert network.stages[0].one[0].weight.grad is None


def test_shared_stages_and_parameters() -> None:
    shared = unit(3, 3, 3)
    network = small(nn.Sequential(shared, unit(3, 3)), shared, nn.Sequential(shared, shared), exits=[head(3)] * 3)
    network.stages[0][1][0].weight = nn.Parameter(torch.randn(3, 3, 1, 1, dtype=torch.float64))
    network.exits[0][0][1].bias = network.stages[0][1][1].bias
    form, twin = both(network)
    equal(form, images(), twin)


class Stream(nn.Module):
    """Adds to its map what a unit makes of it: under autocast a sum in float32, of bfloat16."""

    def __init__(self, joins: bool) -> None:
        super().__init__()
        self.unit, self.joins = unit(3, 3, 3), joins

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.unit(x)
        x = x.float() + 0.001
        return torch.cat([x, x * 3], 1)[:, 3:] / 3 if self.joins else x


@pytest.mark.parametrize("joins", [False, True])
def test_a_stream_stays_as_exact_as_the_modules_keep_it(joins: bool) -> None:
    network = small(Stream(joins), Stream(joins), Stream(joins), exits=[head(3)] * 3).float()
    form, twin = both(network)
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        carry = other = (x,)
        for stage, module in zip(form.stages, twin.stages, strict=True):
            carry, other = (stage(*carry),), (module(*other),)
    assert carry[0].dtype == other[0].dtype == torch.float32
    assert (carry[0] - carry[0].bfloat16()).abs().max() > 1e-4
    torch.testing.assert_close(carry, other, rtol=2e-2, atol=2e-2)


def test_auto_is_plain_where_others_decide() -> None:
    network = small(nn.Sequential(unit(3, 4)), exits=[head(4)])
    assert isinstance(training_form(network, "auto", torch.device("cpu")), Merged)
    assert training_form(network, "auto", torch.device("cuda")) is network
    assert not isinstance(training_form(small(), "auto", torch.device("cpu")), Merged)
    assert training_form(network, "plain", torch.device("cpu")) is network
    with pytest.raises(UsageError, match="for a CPU, not for cuda"):
        training_form(network, "kernels", torch.device("cuda"))


def test_networks_with_a_forward_of_their_own_are_refused() -> None:
    class Own(EarlyExitNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 2

    network = Own([unit(3, 4)], [head(4)])
    assert training_form(network, "auto", torch.device("cpu")) is network
    for name in ("merged", "kernels"):
        with pytest.raises(UsageError, match="use plain"):
            training_form(network, name, torch.device("cpu"))
