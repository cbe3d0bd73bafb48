"""Folded modules compute what they did, and what cannot be seen to run in turn is left alone."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from offramp.backbones import msdnet, ranet
from offramp.graphs.folding import fold


@pytest.mark.parametrize("make", [msdnet, ranet])
def test_batch_norms_that_follow_a_convolution_are_gone(make) -> None:
    network = make(num_classes=3).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    fold(network)
    kept = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 2
    assert not kept


class _OutOfOrder(nn.Sequential):
    """Its modules are not run one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        return norm(conv(x) + x)


def _norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


def test_a_sequential_with_a_forward_of_its_own_is_left_alone() -> None:
    module = nn.Sequential(_OutOfOrder(nn.Conv2d(4, 4, 1), _norm())).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = module(x)
    fold(module)
    assert torch.equal(module(x), expected)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_a_hook_computes_are_left_alone() -> None:
    module = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 1)), _norm()).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = module(x)
    fold(module)
    assert torch.equal(module(x), expected)


def test_one_convolution_under_two_batch_norms() -> None:
    conv = nn.Conv2d(4, 4, 1)
    first, second = nn.Sequential(conv, _norm()), nn.Sequential(conv, _norm())
    module = nn.ModuleList([first, second, first]).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = [one(x) for one in module]
    weight = copy.deepcopy(conv.weight)
    fold(module)
    for one, wanted in zip(module, expected, strict=True):
        assert isinstance(one[1], nn.Identity)
        torch.testing.assert_close(one(x), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(conv.weight, weight)


def test_batch_norm_without_running_statistics_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = module(x)
    fold(module)
    assert torch.equal(module(x), expected)


class _Residual(nn.Module):
    """Convolutions under batch norm, one of them also read past it, and a convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(_norm() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        y = self.norms[0](first(x)).relu()
        z = second(y)
        z = self.norms[1](z) + z
        return self.norms[2](third(z)) + self.norms[3](third(y))


def test_graphs_are_folded_where_the_batch_norm_alone_reads() -> None:
    module = fx.symbolic_trace(_Residual().eval())
    x = torch.randn(2, 4, 5, 5)
    expected, state = module(x), copy.deepcopy(module.state_dict())
    given = copy.deepcopy(module)
    fold(given)
    torch.testing.assert_close(given(x), expected, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(one, nn.BatchNorm2d) for one in given.modules()) == 1, "that beside the residual is kept"
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
