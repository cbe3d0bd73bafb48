"""Convolutions whose weights are laid out once, in oneDNN's own way, which otherwise happens at every call.

B images; R pixels of all images, I and O channels in and out.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from offramp.network import has_hooks, runs_in_turn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are convolutions with weights of oneDNN's own layout here: on a CPU, in float32 or bfloat16."""
    needed = (
        (torch.ops.mkldnn, "_convolution_pointwise"),
        (torch.ops.mkldnn, "_linear_pointwise"),
        (torch.ops.mkldnn, "_reorder_linear_weight"),
        (torch._C._nn, "mkldnn_reorder_conv2d_weight"),
        (torch, "_addmm_activation"),
    )
    there = all(hasattr(home, name) for home, name in needed)
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not there:
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class PackedConv(nn.Module):
    """A convolution with its weights in oneDNN's layout, followed by ReLU on request.

    It uses the two operators that `torch.compile` puts in a convolution's place on a CPU. For a single image a 1 x 1 is
    a product of matrices, which is a shorter way.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        sides = (conv.padding, conv.stride, conv.dilation)
        padding, stride, dilation = ([*map(int, of_two)] for of_two in sides)
        self.settings = (padding, stride, dilation, conv.groups)
        weight = conv.weight.detach()
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *self.settings)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.after = "relu" if relu else "none"
        self.convolve = torch.ops.mkldnn._convolution_pointwise.default  # to find it takes time at every call
        self.of_one: PackedProduct | None = None
        if is_product(conv) and self.bias is not None:
            self.of_one = PackedProduct(weight.flatten(1), self.bias, relu)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of a map `[B, channels, height, width]`."""
        if self.of_one is not None and x.shape[0] == 1:
            _, channels, height, width = x.shape
            rows_RO = self.of_one(x.permute(0, 2, 3, 1).reshape(-1, channels))
            return rows_RO.view(1, height, width, -1).permute(0, 3, 1, 2)
        out: Tensor = self.convolve(x, self.weight, self.bias, *self.settings, self.after, [], "")
        return out


class PackedProduct:
    """A 1 x 1 convolution as a product of rows `[R, I]`, followed by ReLU on request.

    Measured on one thread: in bfloat16 oneDNN's operator, which does all at once, is never slower than torch's product
    and 20 % faster for many rows; in float32 it takes 10 us longer at every call and wins nothing.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, relu: bool) -> None:
        self.bias_O, self.after = bias_O, "relu" if relu else "none"
        self.is_packed = weight_OI.dtype == torch.bfloat16
        self.multiply: Callable[..., Tensor]
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())
            self.multiply = torch.ops.mkldnn._linear_pointwise.default
        else:
            self.weight = weight_OI.contiguous().t()
            self.multiply = torch._addmm_activation if relu else torch.addmm  # the activation is ReLU

    def __call__(self, rows_RI: Tensor) -> Tensor:
        """Rows `[R, O]`."""
        if self.is_packed:
            return self.multiply(rows_RI, self.weight, self.bias_O, self.after, [], "")
        return self.multiply(self.bias_O, rows_RI, self.weight)


def is_product(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a matrix product of rows, one a pixel."""
    settings = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return settings == ((1, 1), (1, 1), (0, 0), (1, 1), 1)


def pack(module: nn.Module) -> None:
    """Replace every plain convolution in every `Sequential` inside, with the ReLU after it, if there is one."""
    for child in module.children():
        pack(child)
    if not runs_in_turn(module):
        return
    layers = [(name, layer) for name, layer in module._modules.items() if not isinstance(layer, nn.Identity)]
    for (name, conv), (after, follower) in itertools.pairwise([*layers, ("", None)]):
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        if not has_hooks(conv):
            relu = type(follower) is nn.ReLU and not has_hooks(follower)
            module._modules[name] = PackedConv(conv, relu)
            if relu:
                module._modules[after] = nn.Identity()
