"""Packed convolutions compute what plain ones do, and only plain ones are packed."""

import pytest
import torch
from torch import nn

from offramp.fast.packing import PackedConv, can_pack, pack

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch has no oneDNN operators")


def unit(*convs: nn.Module) -> nn.Sequential:
    layers = [[conv, nn.Identity(), nn.ReLU(inplace=True)] for conv in convs]
    return nn.Sequential(*(layer for triple in layers for layer in triple)).eval().requires_grad_(False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_same_values_for_any_number_of_rows(layout, rows):
    plain = unit(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 6, 3, groups=2))
    packed = unit(*(plain[i] for i in (0, 3, 6)))
    pack(packed)
    x = torch.randn(rows, 3, 9, 11).contiguous(memory_format=layout)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), atol=1e-6, rtol=1e-5)
    assert [type(layer) for layer in packed].count(PackedConv) == 3
    assert not any(isinstance(layer, nn.ReLU) for layer in packed)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 0, 2)])
def test_pointwise_convolutions_with_and_without_relu(layout, rows, stride, padding, groups):
    convs = [nn.Conv2d(4, 6, 1, stride, padding, groups=groups) for _ in range(2)]
    plain = nn.Sequential(convs[0], nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False), convs[1], nn.Tanh())
    plain.eval().requires_grad_(False)
    packed = nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in plain))
    pack(packed)
    x = torch.randn(rows, 4, 7, 5).contiguous(memory_format=layout)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), atol=1e-6, rtol=1e-5)
    assert [type(layer) for layer in packed].count(PackedConv) == 3


@pytest.mark.parametrize("rows", [1, 4])
def test_bfloat16_is_as_near_as_the_plain_convolution(rows):
    plain = unit(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    x = torch.randn(rows, 3, 8, 8)
    exact = plain(x)
    plain.to(torch.bfloat16)
    coarse = plain(x.bfloat16())
    pack(plain)
    assert (plain(x.bfloat16()) - exact).abs().max() <= 2 * (coarse - exact).abs().max()


def test_without_a_relu_behind_nothing_is_cut_off():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten()).requires_grad_(False)
    x = torch.randn(5, 2, 1, 1)
    with torch.inference_mode():
        want = net(x)
        pack(net)
        torch.testing.assert_close(net(x), want)
    assert (want < 0).any()
    assert isinstance(net[0], PackedConv)


def test_other_convolutions_stay():
    class Odd(nn.Conv2d):
        pass

    net = nn.Sequential(
        Odd(2, 2, 1), nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding_mode="reflect", padding=1)
    )
    before = list(net)
    pack(net)
    assert list(net) == before


def test_a_sequential_with_a_way_of_its_own_stays():
    class Residual(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x) + x)

    net = nn.Sequential(Residual(nn.Conv2d(3, 3, 1), nn.ReLU())).requires_grad_(False)
    x = torch.randn(2, 3, 4, 4)
    want = net(x)
    pack(net)
    assert torch.equal(net(x), want)


def test_a_module_that_runs_twice_is_seen_twice():
    twice = nn.AvgPool2d(1)
    net = nn.Sequential(twice, nn.Conv2d(3, 3, 1), twice, nn.ReLU()).requires_grad_(False)
    twice.forward = lambda x: x - 1
    x = torch.randn(2, 3, 4, 4)
    want = net(x)
    pack(net)
    torch.testing.assert_close(net(x), want)


def test_what_somebody_listens_to_stays():
    heard = []
    net = unit(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    net[0].register_forward_hook(lambda *_: heard.append("convolution"))
    net[5].register_forward_hook(lambda *_: heard.append("relu"))
    x = torch.randn(1, 2, 3, 3)
    want = net(x)
    pack(net)
    torch.testing.assert_close(net(x), want)
    assert heard == ["convolution", "relu"] * 2


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("cpu", torch.float16), ("cuda", torch.float32)])
def test_where_there_is_no_such_operator(device, dtype):
    assert not can_pack(torch.device(device), dtype)
