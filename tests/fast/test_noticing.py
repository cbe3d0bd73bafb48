"""A form is its network, however the network is changed meanwhile."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.fast import Merged
from offramp.network import EarlyExitNet


def test_a_hook_is_called_whenever_it_was_added(small, images, equal) -> None:
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
def test_changes_of_modules(small, images, equal, name: str, when: str) -> None:
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


def test_an_exit_that_writes_is_noticed_whenever_it_begins_to(unit, head, small, images, equal, both) -> None:
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


def test_a_stage_or_an_exit_in_another_s_place(unit, head, small, images, equal, both) -> None:
    network = small(unit(3, 4), unit(4, 3), exits=[head(4), head(3)])
    form, twin = both(network)
    equal(form, images(), twin)
    for new, parts in ((unit(4, 3, 3), "stages"), (head(3), "exits")):
        getattr(network, parts)[1] = new.double()
        equal(form, images(), copy.deepcopy(network))


def test_images_that_do_not_fit_leave_no_mark(small, images, equal, both) -> None:
    form, twin = both(small())
    with pytest.raises(RuntimeError, match="type"):
        form(images().float())
    equal(form, images(), twin)
    assert form.stages[0]._plans


class Scaled(nn.Module):
    """With values of its own that its code reads."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit, self.scale, self.shifts, self.calls = unit, 1.0, [0.0], 0

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) * self.scale + self.shifts[0]


def test_values_that_a_module_s_code_reads(unit, head, small, images, equal, both) -> None:
    network = small(Scaled(unit(3, 4)), unit(4, 4), exits=[head(4), head(4)])
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


def test_what_a_module_changes_by_itself_is_not_tried_again_and_again(
    unit, head, small, images, equal, both, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counts(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) + self.calls

    tried = []
    monkeypatch.setattr("offramp.fast.form.why_as_it_is", lambda *given: tried.append(given))
    form, twin = both(small(Counts(unit(3, 4)), exits=[head(4)]))
    for _ in range(3):
        equal(form, images(), twin)
    assert len(tried) == 1
    assert "changes itself" in form.why_not["stages.0"]
