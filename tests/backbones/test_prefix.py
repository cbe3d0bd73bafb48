"""A shorter network: the logits of its exit, the whole network's first weights, and nothing that it does not need."""

import copy
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from offramp import backbones, costs
from offramp.backbones.collaboration import chained
from offramp.backbones.prefix import shortened, shorter
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.network import EarlyExitNet, rebuild

MSDNET: dict[str, Any] = {
    "exits": 3,
    "num_classes": 5,
    "channels": 4,
    "growth": 2,
    "head_channels": 8,
    "image_size": 20,
}
RANET: dict[str, Any] = {"num_classes": 5, "channels": 4, "growth": 4, "head_channels": 8, "image_size": 20}


class Pair(nn.Module):
    """A stage of somebody's own that hands on two maps and decides in Python."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near, self.far = (nn.Conv2d(channels, 3, 3, padding=1) for _ in range(2))

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.rand_like(maps[0]) if self.training else torch.zeros_like(maps[0])
        return self.near(maps[0] + noise), self.far(maps[0])


def own() -> EarlyExitNet:
    exits = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)) for _ in range(2)]
    return EarlyExitNet([Pair(3), Pair(3)], exits, num_classes=5, reads=(0, 1), image_shape=(3, 20, 20))


def graphs() -> EarlyExitNet:
    network = own().eval()
    for k, stage in enumerate(network.stages):
        network.stages[k] = torch.fx.symbolic_trace(stage)
    return network


NETWORKS: dict[str, Callable[[], EarlyExitNet]] = {
    "msdnet": lambda: backbones.msdnet(**MSDNET),
    "msdnet, min": lambda: backbones.msdnet(**{**MSDNET, "prune": "min"}),
    "ranet": lambda: backbones.ranet(**RANET),
    "own": own,
    "collaborating": lambda: chained(backbones.msdnet(**MSDNET)),
    "graphs": graphs,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_exit(name: str) -> None:
    network = NETWORKS[name]().eval()
    images = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        wanted = network(images)
        for k in range(1, network.num_exits + 1):
            short = copy.deepcopy(shortened(network, k))
            assert (short.num_exits, short.num_outputs, short.image_shape) == (1, 5, (3, 20, 20))
            torch.testing.assert_close(short(images)[0], wanted[k - 1], rtol=0, atol=0)


def test_only_what_the_exit_reads_is_computed() -> None:
    """Of MSDNet no finer scale of the last layers; and every weight left has a gradient."""
    network = backbones.msdnet(**MSDNET)
    path = costs.cost(network).path
    for k in range(1, network.num_exits):
        short = shortened(network, k)
        assert costs.cost(short).exits[0].operations < 0.95 * path[k - 1].operations
        short.zero_grad()
        short(torch.randn(4, 3, 20, 20)).sum().backward()
        assert all(parameter.grad is not None for parameter in short.parameters())


def test_a_graph_loses_what_nobody_reads_and_another_module_stays_whole() -> None:
    graph, whole = (shortened(make(), 2) for make in (graphs, own))
    names = {name.removesuffix(".weight") for name in graph.state_dict() if name.endswith("weight")}
    assert names == {"stages.0.stages.0.near", "stages.0.stages.1.far", "exits.0.2"}
    assert whole.stages[0].stages[0].far is not None
    images = torch.randn(1, 3, 20, 20)
    assert not torch.equal(whole.train()(images), whole(images))  # it still looks at its mode
    assert torch.equal(whole.eval()(images), whole(images))


class Changed(nn.Module):
    """A convolution whose map is changed by something whose result nobody keeps."""

    def __init__(self, change: Callable[[Any, Tensor], Any], act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.change = nn.Conv2d(3, 4, 1), act, change

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.change(self, x)
        return x


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


CHANGES: dict[str, tuple[Callable[[Any, Tensor], Any], nn.Module]] = {
    "method": (lambda net, x: x.add_(1), nn.Identity()),
    "operator": (lambda net, x: operator.methodcaller("__imul__", 2)(x), nn.Identity()),
    "function": (lambda net, x: relu(x, inplace=True), nn.Identity()),
    "function, by place": (lambda net, x: relu(x, True), nn.Identity()),
    "out": (lambda net, x: torch.add(x, 1, out=x), nn.Identity()),
    "part of it": (lambda net, x: relu(x[:, 1:].flatten(1), inplace=True), nn.Identity()),
    "module": (lambda net, x: net.act(x), nn.ReLU(inplace=True)),
    "modules": (lambda net, x: net.act(x), nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))),
    "somebody's module": (lambda net, x: net.act(x), nn.Sequential(Halves())),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_a_change_in_place_is_not_lost(name: str) -> None:
    whole = Changed(*CHANGES[name])
    stages = [torch.fx.GraphModule(whole, Leaves().trace(whole)), torch.fx.symbolic_trace(nn.Identity())]
    network = EarlyExitNet(stages, [nn.Flatten(), nn.Flatten()], num_classes=16)
    images = torch.randn(2, 3, 2, 2)
    assert not torch.equal(network(images)[0], whole.conv(images).flatten(1))
    for k in (1, 2):
        torch.testing.assert_close(shortened(network, k)(images)[0], network(images)[k - 1], rtol=0, atol=0)


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_a_change_of_what_nobody_reads_is_left_out() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.act = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.near(x), self.act(relu(self.norm(self.far(x)), inplace=True))

    whole = Both()
    network = EarlyExitNet(
        [torch.fx.GraphModule(whole, Leaves().trace(whole))], [nn.Flatten()], num_classes=16, reads=[0]
    )
    short = shortened(network, 1)
    assert {name.removeprefix("stages.0.stages.0.") for name in short.state_dict()} == {"near.weight", "near.bias"}
    images = torch.randn(2, 3, 2, 2)
    assert torch.equal(short(images), network(images))


def test_it_starts_as_the_whole_network_starts() -> None:
    base = backbones.build(Spec("msdnet", MSDNET), damping=True).spec
    assert base is not None
    torch.manual_seed(3)
    whole = rebuild(base)
    torch.manual_seed(3)
    short = shorter(base.to_json(), 2, damping=True)
    known = whole.state_dict()
    for name, tensor in short.stages[0].state_dict().items():
        assert torch.equal(tensor, known[name])
    assert short.damping
    assert not shorter(base.to_json(), 2).damping
    assert short.spec is not None
    again = rebuild(Spec.from_json(json.loads(json.dumps(short.spec.to_json()))))
    assert again.state_dict().keys() == short.state_dict().keys()


@pytest.mark.parametrize("damping", [False, True], ids=["prefix without", "prefix with"])
def test_with_the_neuron_on_one_side_only_the_trunk_starts_alike_and_the_head_does_not(damping: bool) -> None:
    """MSDNet draws its stages before its heads, and a neuron more in the first head shifts what is drawn after it."""
    base = backbones.build(Spec("msdnet", MSDNET), damping=not damping).spec
    assert base is not None
    torch.manual_seed(3)
    whole = rebuild(base)
    for exits in (1, 2):
        torch.manual_seed(3)
        short = shorter(base.to_json(), exits, damping=damping)
        assert short.damping == damping
        known = whole.state_dict()
        for name, tensor in short.stages[0].state_dict().items():
            assert torch.equal(tensor, known[name])
        firsts = [net.exits[k].state_dict()["first.conv.weight"] for net, k in ((short, 0), (whole, exits - 1))]
        assert torch.equal(*firsts) == (exits == 1)


def test_by_name_from_a_run(tmp_path: Path) -> None:
    network = backbones.build(Spec("msdnet", MSDNET), damping=True)
    assert network.spec is not None
    config = {
        "format": 1,
        "data": None,
        "network": network.spec.to_json(),
        "objective": {"name": "damping", "args": {}},
        "training": {},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = Spec("prefix", {"run": str(tmp_path), "exits": 3})
    short = backbones.build(spec, num_classes=5, image_shape=(3, 20, 20), damping=False)
    assert short.state_dict().keys() == shortened(network, 3).state_dict().keys()
    (tmp_path / "config.json").write_text(json.dumps({**config, "network": None}))
    with pytest.raises(UsageError, match="built by hand"):
        backbones.build(spec)


@pytest.mark.parametrize("exits", [0, 4, True, 1.0])
def test_exits_that_are_not_there_are_refused(exits: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 3"):
        shortened(backbones.msdnet(**MSDNET), exits)
