"""Convolutions whose weights are laid out once, in oneDNN's own way, which otherwise happens at every call.

B images.
"""

import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are convolutions with weights of oneDNN's own layout here: on a CPU, in float32 or bfloat16."""
    there = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and hasattr(
        torch._C._nn, "mkldnn_reorder_conv2d_weight"
    )
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not there:
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class PackedConv(nn.Module):
    """A convolution with its weights in oneDNN's layout, followed by ReLU on request.

    It uses the two operators that `torch.compile` puts in a convolution's place on a CPU. A single image goes through
    the plain convolution, which has a shorter way for it.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        sides = (conv.padding, conv.stride, conv.dilation)
        self.padding, self.stride, self.dilation = ([*map(int, of_two)] for of_two in sides)
        self.groups = conv.groups
        self.settings = (self.padding, self.stride, self.dilation, self.groups)
        self.plain = conv.weight.detach()
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(self.plain.to_mkldnn(), *self.settings)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.after = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of a map `[B, channels, height, width]`."""
        if x.shape[0] == 1:
            single = F.conv2d(x, self.plain, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return single.relu_() if self.after == "relu" else single
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.settings, self.after, [], ""
        )
        return out


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


def runs_in_turn(module: nn.Module) -> bool:
    """Whether a module is a `Sequential` that does nothing but run what it holds, one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to a module, which then has to stay."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
