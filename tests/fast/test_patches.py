"""Patches are the convolution's own gradients, whatever its sides, strides and padding."""

import pytest
import torch
from torch import nn

from offramp.fast import patches


@pytest.mark.parametrize("kernel", [2, 3, (3, 2), 5])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 3)])
@pytest.mark.parametrize("padding", [0, 1, 2, (1, 0)])
@pytest.mark.parametrize("sides", [(7, 7), (8, 8), (9, 6)])
def test_gradients_are_the_convolutions(kernel, stride, padding, sides):
    conv = nn.Conv2d(4, 5, kernel, stride, padding, bias=False).double()
    x_BIHW = torch.randn(3, 4, *sides, dtype=torch.float64, requires_grad=True)
    z_BOHW = conv(x_BIHW)
    dz_BOHW = torch.randn_like(z_BOHW)
    z_BOHW.backward(dz_BOHW)
    dz_RO = dz_BOHW.permute(0, 2, 3, 1).reshape(-1, 5)
    found_BHWI = torch.ones(3, *sides, 4, dtype=torch.float64)  # it is added to what is there
    patches.add_input_gradient(conv, conv.weight.detach(), dz_RO, found_BHWI)
    torch.testing.assert_close(found_BHWI.permute(0, 3, 1, 2) - 1, x_BIHW.grad, rtol=1e-12, atol=1e-12)
    found = patches.weight_gradient(conv, x_BIHW.detach().permute(0, 2, 3, 1), dz_RO)
    torch.testing.assert_close(found, conv.weight.grad, rtol=1e-12, atol=1e-12)


def test_only_wide_convolutions_with_stride_in_bfloat16_pay():
    bf16 = torch.bfloat16
    assert patches.pay(nn.Conv2d(64, 64, 3, stride=2, padding=1), bf16)
    assert not patches.pay(nn.Conv2d(64, 64, 3, stride=2, padding=1), torch.float32)
    for others in ({"in_channels": 32}, {"stride": 1}, {"groups": 2}, {"dilation": 2}, {"kernel_size": 1}):
        knobs = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "stride": 2, **others}
        assert not patches.pay(nn.Conv2d(**knobs), bf16), others
