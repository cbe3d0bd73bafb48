"""Parts that write into maps that others see."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.graphs.exit_writes import check_skippable
from offramp.network import EarlyExitNet, as_carry


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


class Passing(nn.Module):
    """A map, and the map before it as it came in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


class Crossing(Passing):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(y), x


class OfSecond(Passing):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(y)


def conv(*after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), *after)


def network_of(stages: list[nn.Module], firsts: list[nn.Module], reads: int = -1) -> EarlyExitNet:
    """Exits that begin with `firsts`."""
    exits = [nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)) for first in firsts]
    return EarlyExitNet(stages, exits, reads=reads)


def in_place() -> nn.Module:
    return nn.ReLU(inplace=True)


LOST: dict[str, tuple[Callable[[], EarlyExitNet], str]] = {
    "into what comes next": (
        lambda: network_of([conv(), conv()], [in_place(), nn.ReLU()]),
        r"^Exit 1 writes into a map that stage 2 reads \(in place\).* such as nn.ReLU\(inplace=False\)\.$",
    ),
    "into what is passed on": (
        lambda: network_of([Passing(), Crossing(), OfSecond()], [in_place(), nn.ReLU(), nn.ReLU()], reads=0),
        "^Exit 1 writes into a map that stage 3 reads",
    ),
    "into what a later exit reads": (
        lambda: network_of([conv(), nn.Identity()], [in_place(), nn.Identity()]),
        "^Exit 1 writes into a map that exit 2 reads",
    ),
    "into a view": (
        lambda: network_of([conv(nn.Flatten(), nn.Unflatten(1, (4, 36, 1))), conv()], [Writes(), nn.ReLU()]),
        "^Exit 1 writes into a map that stage 2 reads",
    ),
    "large values alone": (
        lambda: network_of([conv(nn.ReLU()), conv()], [nn.ReLU6(inplace=True), nn.ReLU()]),
        "^Exit 1 writes into a map that stage 2 reads",
    ),
    "with dropout after": (
        lambda: network_of([conv(), conv(nn.Dropout())], [in_place(), nn.Dropout()]),
        "^Exit 1 writes into a map that stage 2 reads",
    ),
}
HARMLESS: dict[str, Callable[[], EarlyExitNet]] = {
    "nobody": lambda: network_of([conv(), conv()], [nn.ReLU(), nn.ReLU()]),
    "the last exit": lambda: network_of([conv(), conv()], [nn.ReLU(), in_place()]),
    "a stage, after its exit has read": lambda: network_of([conv(), nn.Sequential(Writes(), conv())], [nn.ReLU()] * 2),
    "what is there already": lambda: network_of([conv(nn.ReLU()), conv()], [in_place(), nn.ReLU()]),
    "into what nobody reads": lambda: network_of([Passing(), OfSecond()], [in_place(), nn.ReLU()], reads=0),
    "in training alone": lambda: network_of([conv(), conv()], [nn.Dropout(inplace=True), nn.ReLU()]),
}


@torch.no_grad()
def last_logits_change(network: EarlyExitNet) -> bool:
    """Whether they are others where only stages and the last exit are run."""
    network.eval()
    images = torch.randn(3, 4, 6, 6) * 30
    wanted, carry = network(images.clone())[-1], (images,)
    for stage in network.stages:
        carry = as_carry(stage(*carry))
    return not torch.allclose(network.run_exit(network.num_exits - 1, carry), wanted)


@pytest.mark.parametrize("name", LOST)
def test_an_exit_that_changes_later_answers_is_refused(name: str) -> None:
    make, says = LOST[name]
    network = make()
    assert last_logits_change(copy.deepcopy(network))
    with pytest.raises(UsageError, match=says):
        check_skippable(network.train(), (4, 6, 6))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_answer_is_not(name: str) -> None:
    network = HARMLESS[name]()
    assert not last_logits_change(copy.deepcopy(network))
    check_skippable(network.train(), (4, 6, 6))


def test_asking_leaves_no_mark() -> None:
    network, heard = LOST["with dropout after"][0](), []
    network.exits[0][0].register_forward_hook(lambda *_: heard.append(1))
    before, drawn = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with torch.inference_mode(), pytest.raises(UsageError):
        check_skippable(network, (4, 6, 6))
    assert not heard
    assert len(network.exits[0][0]._forward_hooks) == 1
    assert network.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_network_that_cannot_be_tried_decides_by_itself() -> None:
    check_skippable(network_of([nn.Conv2d(4, 4, 9), conv()], [in_place(), nn.ReLU()]), (4, 6, 6))
