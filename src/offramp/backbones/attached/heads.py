"""The exits of an attached network: new ones after each cut, and the model's own at the end.

B images, C channels, H and W sides of a map, T tokens, N classes.
"""

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import pad

from offramp.backbones.layers import Unit
from offramp.graphs.cutting import GraphPart
from offramp.graphs.sites import Layout
from offramp.network import NO_NEURON

HeadKind = Literal["pool", "deep"]
HEADS: tuple[HeadKind, ...] = ("pool", "deep")
DEEP_WIDTH = 128  # channels of a deep head, as those of the published networks


class ChannelsFirst(nn.Module):
    """`[B, H, W, C]` to `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers."""
        return x.permute(0, 3, 1, 2)


class ClassToken(nn.Module):
    """The first of `[B, T, C]`, as `[B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x[:, 0]


class MeanToken(nn.Module):
    """The mean of `[B, T, C]` over the tokens, as `[B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.mean(1)


def new_exit(layout: Layout, sizes: tuple[int, ...], num_outputs: int, kind: HeadKind) -> nn.Sequential:
    """An exit that reads a tensor of these sizes: pooling and a Linear, or something deeper.

    What transformers (and maps with channels last) carry from block to block has no common scale, so a layer norm is
    first. `deep` is two strided convolutions on a map, a hidden layer on tokens.
    """
    channels = sizes[1] if layout in ("map", "vector") else sizes[-1]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    is_map = layout in ("map", "map, channels last")
    if layout != "map" and layout != "vector":
        layers["norm"] = nn.LayerNorm(channels)
    if layout == "map, channels last":
        layers["channels_first"] = ChannelsFirst()
    if is_map and kind == "deep":
        layers["first"] = Unit(channels, DEEP_WIDTH, 3, stride=2)
        layers["second"] = Unit(DEEP_WIDTH, DEEP_WIDTH, 3, stride=2)
        channels = DEEP_WIDTH
    if is_map:
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
    elif layout != "vector":
        layers["pool"] = ClassToken() if layout == "class token" else MeanToken()
    if not is_map and kind == "deep":
        layers["hidden"] = nn.Linear(channels, channels)
        layers["act"] = nn.GELU()
    layers["linear"] = nn.Linear(channels, num_outputs)
    return nn.Sequential(layers)


def last_layer(head: fx.GraphModule) -> tuple[str, nn.Linear] | None:
    """Name and module of the Linear whose outputs are the logits of an exit; None where it ends otherwise."""
    (node,) = [n for n in head.graph.nodes if n.op == "output"]
    node = node.args[0]
    while node.op == "call_module":
        module = head.get_submodule(str(node.target))
        if isinstance(module, nn.Linear):
            return str(node.target), module
        if not isinstance(module, nn.Identity):
            return None
        node = node.args[0]
    return None


def with_outputs(head: GraphPart, num_outputs: int) -> bool:
    """Give the last Linear of an exit fresh weights for so many outputs; False where it has no such Linear."""
    last = last_layer(head)
    if last is not None:
        name, linear = last
        head.set_submodule(name, nn.Linear(linear.in_features, num_outputs).to(linear.weight))
    return last is not None


def with_neuron(head: GraphPart) -> None:
    """Give an exit one more output, the damping neuron; the others stay as they are.

    The neuron starts with weights of zero and a bias of zero, so it gives 0 for every image. An exit that does not end
    with a Linear has none: its last output is `NO_NEURON`.
    """
    last = last_layer(head)
    if last is not None:
        name, linear = last
        wide = nn.Linear(linear.in_features, linear.out_features + 1, bias=linear.bias is not None).to(linear.weight)
        with torch.no_grad():
            for own, old in zip(wide.parameters(), linear.parameters(), strict=True):
                own.zero_()
                own[:-1] = old
        head.set_submodule(name, wide)
        return
    (output,) = [n for n in head.graph.nodes if n.op == "output"]
    with head.graph.inserting_before(output):
        padded = head.graph.call_function(pad, (output.args[0], (0, 1)), {"value": NO_NEURON})
    output.args = (padded,)
    head.recompile()
