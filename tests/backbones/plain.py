"""MSDNet and RANet once more, as one writes them down module by module: what ours are compared with, and timed over.

Written from the description of the architectures alone. Every layer is the library's own, maps are joined with
`torch.cat`, and blocks hand each other lists of maps. Arguments are those of `offramp.backbones`, with the same
defaults, as far as they shape the network; nothing checks them. Weights are the library's until `copy_weights`.

K exits, B images, C outputs of an exit. S scales or sub-networks.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

Maps = list[Tensor]


def unit(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def bottleneck(before: int, after: int, factor: int, stride: int = 1) -> nn.Sequential:
    width = min(before, factor * after)
    return nn.Sequential(unit(before, width, 1), unit(width, after, 3, stride))


def head(before: int, width: int | None, outputs: int) -> nn.Sequential:
    width = width or before
    return nn.Sequential(
        unit(before, width, 3, stride=2),
        unit(width, width, 3, stride=2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(width, outputs),
    )


class Stem(nn.Module):
    """Images to a list of maps, finest first, each made of the one before."""

    def __init__(self, kind: str, in_channels: int, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        if kind == "cifar":
            self.finest = unit(in_channels, channels[0], 3)
        else:
            self.finest = nn.Sequential(
                nn.Conv2d(in_channels, channels[0], 7, stride=2, padding=3),
                nn.BatchNorm2d(channels[0]),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        self.coarser = nn.ModuleList(unit(channels[i], channels[i + 1], 3, strides[i]) for i in range(len(strides)))

    def forward(self, images: Tensor) -> Maps:
        maps = [self.finest(images)]
        for scale in self.coarser:
            maps.append(scale(maps[-1]))
        return maps


class MSDNetLayer(nn.Module):
    """Maps of some scales, with factors g and b, to grown maps of the coarsest `num_out` of them."""

    def __init__(self, c: int, growth: int, g: Sequence[int], b: Sequence[int], num_out: int) -> None:
        super().__init__()
        self.first = len(g) - num_out
        self.same, self.down = nn.ModuleDict(), nn.ModuleDict()
        for s in range(self.first, len(g)):
            if s == 0:
                self.same[str(s)] = bottleneck(c * g[s], growth * g[s], b[s])
            else:
                half = growth * g[s] // 2
                self.down[str(s)] = bottleneck(c * g[s - 1], half, b[s - 1], stride=2)
                self.same[str(s)] = bottleneck(c * g[s], half, b[s])

    def forward(self, maps: Maps) -> Maps:
        grown = []
        for s in range(self.first, len(maps)):
            if s == 0:
                grown.append(torch.cat([maps[s], self.same[str(s)](maps[s])], dim=1))
            else:
                down, same = self.down[str(s)](maps[s - 1]), self.same[str(s)](maps[s])
                grown.append(torch.cat([maps[s], down, same], dim=1))
        return grown


class MSDNetTransition(nn.Module):
    """A 1 x 1 unit on each map."""

    def __init__(self, before: int, after: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(unit(before * factor, after * factor, 1) for factor in factors)

    def forward(self, maps: Maps) -> Maps:
        return [scale(x) for scale, x in zip(self.scales, maps, strict=True)]


class PlainMSDNet(nn.Module):
    """MSDNet: images to logits `[K, B, C]`."""

    def __init__(
        self,
        exits: int = 7,
        num_classes: int = 100,
        damping: bool = False,
        base: int = 1,
        step: int = 1,
        step_mode: str = "lin_grow",
        channels: int = 16,
        growth: int = 6,
        growth_factors: Sequence[int] = (1, 2, 4),
        bottleneck_factors: Sequence[int] | None = None,
        prune: str = "max",
        reduction: float = 0.5,
        stem: str = "cifar",
        head_channels: int | None = 128,
        image_size: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.image_shape = (in_channels, image_size, image_size)
        g, b, S = growth_factors, bottleneck_factors or growth_factors, len(growth_factors)
        per_block = [base] + [step if step_mode == "even" else step * i + 1 for i in range(1, exits)]
        n = sum(per_block)
        self.stem = Stem(stem, in_channels, [channels * factor for factor in g], [2] * (S - 1))
        self.blocks, self.heads = nn.ModuleList(), nn.ModuleList()
        c, number = channels, 0
        for num_layers in per_block:
            block = nn.Sequential()
            for _ in range(num_layers):
                number += 1
                num_in, num_out = scales_of(number, n, S, prune)
                block.append(MSDNetLayer(c, growth, g[-num_in:], b[-num_in:], num_out))
                c += growth
                if reduction > 0 and (num_in > num_out if prune == "max" else number in (n // 3, 2 * n // 3)):
                    reduced = math.floor(reduction * c)
                    block.append(MSDNetTransition(c, reduced, g[-num_out:]))
                    c = reduced
            self.blocks.append(block)
            self.heads.append(head(c * g[-1], head_channels, num_classes + damping))

    def forward(self, images: Tensor) -> Tensor:
        maps, logits = self.stem(images), []
        for block, exit in zip(self.blocks, self.heads, strict=True):
            maps = block(maps)
            logits.append(exit(maps[-1]))
        return torch.stack(logits)


def scales_of(number: int, num_layers: int, S: int, prune: str) -> tuple[int, int]:
    """How many scales go into layer `number` (from 1) of MSDNet, and out of it."""
    if prune == "min":
        return min(S, num_layers - number + 2), min(S, num_layers - number + 1)
    interval = math.ceil(num_layers / S)
    return S - max(0, number - 2) // interval, S - (number - 1) // interval


class DenseBlock(nn.Module):
    """A plain block of RANet: a map to the block's own, and the list of maps before each layer and after the last."""

    def __init__(self, channels: int, num_layers: int, growth: int, factor: int, reduced: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(bottleneck(channels + j * growth, growth, factor) for j in range(num_layers))
        self.transition = nn.Identity() if reduced is None else unit(channels + num_layers * growth, reduced, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Maps]:
        maps = [x]
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
            maps.append(x)
        return self.transition(x), maps


class FusionBlock(nn.Module):
    """A block of RANet that reads, besides its map, the list of maps of a block of the sub-network below.

    `low_channels` are those of the list; of a layer's `growth` new channels `num_up` come from there.
    """

    def __init__(
        self,
        channels: int,
        low_channels: Sequence[int],
        growth: int,
        num_up: int,
        factor: int,
        low_factor: int,
        halves: bool,
        num_extra: int,
        reduced: int | None,
    ) -> None:
        super().__init__()
        num_layers = len(low_channels) - 1
        self.own, self.up = nn.ModuleList(), nn.ModuleList()
        for j in range(num_layers):
            stride = 2 if halves and j == num_layers - 1 else 1
            self.own.append(bottleneck(channels + j * growth, growth - num_up, factor, stride))
            self.up.append(bottleneck(low_channels[j], num_up, low_factor))
        self.extra = unit(low_channels[-1], num_extra, 1)
        wide = channels + num_layers * growth + num_extra
        self.transition = nn.Identity() if reduced is None else unit(wide, reduced, 1)

    def forward(self, x: Tensor, low: Maps) -> tuple[Tensor, Maps]:
        maps = [x]
        for own, up, below in zip(self.own, self.up, low[:-1], strict=True):
            new = own(x)
            x = torch.cat([resize(x, new), resize(up(below), new), new], dim=1)
            maps.append(x)
        x = torch.cat([x, resize(self.extra(low[-1]), x)], dim=1)
        return self.transition(x), maps


def resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class PlainRANet(nn.Module):
    """RANet: images to logits `[K, B, C]`."""

    def __init__(
        self,
        num_classes: int = 100,
        damping: bool = False,
        blocks: int = 2,
        block_step: int = 2,
        scales: Sequence[int] = (1, 2, 3),
        growth_factors: Sequence[int] = (4, 2, 1),
        bottleneck_factors: Sequence[int] | None = None,
        channels: int = 16,
        growth: int = 6,
        step: int = 2,
        step_mode: str = "lg",
        compress: float = 0.25,
        reduction: float = 0.5,
        stem: str = "cifar",
        head_channels: int | None = 128,
        image_size: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.image_shape = (in_channels, image_size, image_size)
        g, b, S = growth_factors, bottleneck_factors or growth_factors, len(scales)
        strides = [1 if scales[i] == scales[i - 1] else 2 for i in range(S - 1, 0, -1)]
        self.stem = Stem(stem, in_channels, [channels * factor for factor in reversed(g)], strides)
        self.nets, self.heads = nn.ModuleList(), nn.ModuleList()
        num_blocks = [0] + [blocks + block_step * i for i in range(S)]  # of each sub-network, after a 0
        below: list[list[int]] = []  # channels that each block of the sub-network below hands up
        for i in range(S):
            transitions = [m * num_blocks[i + 1] // scales[i] for m in range(1, scales[i])]
            halvings = num_blocks[: i + 1][-(scales[i] - 1) :] if scales[i] > 1 else []
            G, C = growth * g[i], channels * g[i]
            net, handed = nn.ModuleList(), []
            for n in range(1, num_blocks[i + 1] + 1):
                num_layers = step * n if step_mode == "lg" else step
                handed.append([C + j * G for j in range(num_layers + 1)])
                grown = C + num_layers * G
                num_extra = math.floor(compress * grown) if n <= num_blocks[i] else 0
                reduced = math.floor(reduction * (grown + num_extra)) if n in transitions else None
                if n <= num_blocks[i]:
                    num_up, halves = math.floor(compress * G), n in halvings
                    low = below[n - 1]
                    net.append(FusionBlock(C, low, G, num_up, b[i], b[i - 1], halves, num_extra, reduced))
                else:
                    net.append(DenseBlock(C, num_layers, G, b[i], reduced))
                C = grown + num_extra if reduced is None else reduced
                if n > num_blocks[i]:
                    self.heads.append(head(C, head_channels, num_classes + damping))
            self.nets.append(net)
            below = handed

    def forward(self, images: Tensor) -> Tensor:
        low: list[Maps] = []
        exits, logits = iter(self.heads), []
        for net, x in zip(self.nets, reversed(self.stem(images)), strict=True):
            handed = []
            for n, block in enumerate(net):
                if isinstance(block, FusionBlock):
                    x, maps = block(x, low[n])
                else:
                    x, maps = block(x)
                    logits.append(next(exits)(x))
                handed.append(maps)
            low = handed
        return torch.stack(logits)


def matched(ours: nn.Module, plain: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """Each weight and buffer of our network: its name, itself, and its like in the plain network.

    Layers are matched in the order in which they are run.

    Raises:
        ValueError: Layers of another kind or shape, or some that have no like.
    """
    here, there = (layers_as_run(network, ours.image_shape) for network in (ours, plain))
    if len(here) != len(there):
        raise ValueError(f"{len(here)} layers of our network are run, {len(there)} of the plain one.")
    found = []
    for (name, layer), (other_name, other) in zip(here, there, strict=True):
        entries, others = layer.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
        if type(layer) is not type(other) or shapes_of(entries) != shapes_of(others):
            raise ValueError(f"{name} of our network is {layer}, {other_name} of the plain one {other}.")
        found += [(f"{name}.{entry}", tensor, others[entry]) for entry, tensor in entries.items()]
    for network, tensors in ((ours, {id(mine) for _, mine, _ in found}), (plain, {id(like) for _, _, like in found})):
        left = [name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) not in tensors]
        if left:
            raise ValueError(f"Nothing that is run holds {', '.join(left)}.")
    return found


def layers_as_run(network: nn.Module, image_shape: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """Names and modules with tensors of their own, in the order in which an image meets them."""
    found, hooks = [], []
    for name, module in network.named_modules():
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:

            def note(module: nn.Module, *_: Any, name: str = name) -> None:
                found.append((name, module))

            hooks.append(module.register_forward_hook(note))
    weight, was_training = next(network.parameters()), network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return found


def shapes_of(entries: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in entries.items()}


@torch.no_grad()
def copy_weights(ours: nn.Module, plain: nn.Module) -> None:
    """Give the plain network the weights and running statistics of ours; see `matched`."""
    for _, mine, like in matched(ours, plain):
        like.copy_(mine)


def sgd(network: nn.Module, *, fused: bool = False) -> torch.optim.SGD:
    """The paper's."""
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=fused)


def loss_of(logits_KBC: Tensor, targets: Tensor) -> Tensor:
    """The sum of the exits' cross-entropies."""
    return sum(F.cross_entropy(logits_BC, targets) for logits_BC in logits_KBC)


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, precision: str = "float32"
) -> Tensor:
    """Forward, sum of the exits' cross-entropies, backward, update; in bf16 under autocast. Gives the loss."""
    optimizer.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = loss_of(network(images), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_steps(
    network: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    steps: int,
    dtype: torch.dtype = torch.float32,
    precision: str = "float32",
) -> list[float]:
    """Train for so many steps on batches (images, targets) in turn, with the paper's SGD; gives the losses.

    The network becomes one of `dtype`, and the gradients of the last step stay with its weights.
    """
    network.to(dtype).train()
    optimizer = sgd(network)
    losses = []
    for number in range(steps):
        images, targets = batches[number % len(batches)]
        losses.append(train_step(network, optimizer, images.to(dtype), targets, precision).item())
    return losses
