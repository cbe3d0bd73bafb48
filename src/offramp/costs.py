"""What a network costs: operations, multiply-adds and parameters, per stage, head and exit. Counts, not latencies.

*Operations* are the paper's "FLOPs", counted as the original MSDNet program counts: one multiply-add of a convolution
or a matrix product is 1; ReLU is 1 an element; pooling is its window's size per output; the bias of a Linear is 1 per
output. Biases of convolutions, batch norm, concatenation, interpolation and softmax count nothing. *Multiply-adds* are
those of convolutions and matrix products alone, half of what PyTorch's own counter reports.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.network import Carry, EarlyExitNet, eval_twin

aten = torch.ops.aten


@dataclass(frozen=True)
class Count:
    """For one image; shared parameters count once."""

    operations: int  # the paper's
    multiply_adds: int  # of convolutions and matrix products
    parameters: int  # numbers in weights and biases, not the running statistics of batch norm


@dataclass(frozen=True)
class Cost:
    """What each part of a network costs for one image of `image_shape`: counts, not latencies.

    Attributes:
        exits: Up to exit k with the heads of all exits on the way, as the papers count.
        path: Up to exit k with no head but that of exit k: what an image costs that is asked for there alone.
    """

    exits: tuple[Count, ...]
    path: tuple[Count, ...]
    stages: tuple[Count, ...]
    heads: tuple[Count, ...]
    image_shape: tuple[int, int, int]


def cost(network: EarlyExitNet, image_shape: tuple[int, int, int] | None = None) -> Cost:
    """Count what `network` does with one image `(channels, height, width)`, by default the one it was made for.

    Counts whatever runs, also in a network of one's own, by running it once on an image of zeros, in evaluation mode,
    where its parameters are. The network itself is left as it is.
    """
    shape = network.shape_of_images(image_shape)
    twin = eval_twin(network)
    like = next(network.parameters(), torch.empty(0))
    carry: Carry = (torch.zeros(1, *shape, device=like.device, dtype=like.dtype),)
    stages, heads = [], []
    for k in range(network.num_exits):
        of_stage, of_head = _Counter(), _Counter()
        carry = of_stage.run(twin.run_stage, k, carry)
        of_head.run(twin.run_exit, k, carry)
        stages.append(of_stage.count(network.stages[k]))
        heads.append(of_head.count(network.exits[k]))
    exits, path = [], []
    for k in range(1, network.num_exits + 1):
        exits.append(_sum([*stages[:k], *heads[:k]], [*network.stages[:k], *network.exits[:k]]))
        path.append(_sum([*stages[:k], heads[k - 1]], [*network.stages[:k], network.exits[k - 1]]))
    return Cost(tuple(exits), tuple(path), tuple(stages), tuple(heads), shape)


def operations_of(function: Callable[..., Any], *arguments: Any) -> int:
    """The paper's operations of a call, without gradients."""
    counter = _Counter()
    counter.run(function, *arguments)
    return counter.operations


def _num_parameters(modules: Iterable[nn.Module]) -> int:
    unique = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in unique.values())


def _sum(counts: Sequence[Count], modules: Iterable[nn.Module]) -> Count:
    operations, multiply_adds = sum(c.operations for c in counts), sum(c.multiply_adds for c in counts)
    return Count(operations, multiply_adds, _num_parameters(modules))


class _Counter:
    """Counts what `run` runs: PyTorch's counter for the products (2 for each multiply-add), and the rest beside it."""

    def __init__(self) -> None:
        self.rest = 0
        formulas = {op: functools.partial(self._note, formula) for op, formula in _REST.items()}
        products = {aten.addmm: self._linear, aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        self.products = FlopCounterMode(display=False, custom_mapping={**formulas, **products})

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # A whole layer of attention as one operator, torch's fast path in evaluation, would count nothing.
        is_fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), self.products:
                return function(*arguments)
        finally:
            torch.backends.mha.set_fastpath_enabled(is_fast)

    @property
    def multiply_adds(self) -> int:
        return self.products.get_total_flops() // 2

    @property
    def operations(self) -> int:
        return self.multiply_adds + self.rest

    def count(self, module: nn.Module) -> Count:
        return Count(self.operations, self.multiply_adds, _num_parameters([module]))

    def _note(self, formula: Callable[..., int], *shapes: Any, out_shape: Any, **_: Any) -> int:
        self.rest += formula(*shapes, out=out_shape)
        return 0

    def _linear(self, bias: Any, inputs: Any, weight: Any, out_shape: Any, **_: Any) -> int:
        self.rest += prod(out_shape)
        return int(2 * prod(out_shape) * inputs[-1])


# Formulas get the shapes of an operator's tensors, and its other arguments as they are.


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Queries times keys, and what comes of it times values: 2 for each multiply-add, like all products."""
    return int(2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _elements(x: Any, *_: Any, out: Any) -> int:
    return int(prod(x))


def _window(x: Any, kernel: Sequence[int], *_: Any, out: Any) -> int:
    return int(prod(_first(out)) * kernel[0] * kernel[-1])


def _adaptive_window(x: Any, *_: Any, out: Any) -> int:
    height, width = (ceil(before / after) for before, after in zip(x[-2:], _first(out)[-2:], strict=True))
    return int(prod(_first(out)) * height * width)


def _global_average(x: Any, axes: Any = None, keepdim: bool = False, *_: Any, out: Any) -> int:
    """Adaptive average pooling to 1 x 1 arrives as a mean over the last two of four axes; other means count nothing."""
    is_pooling = len(x) == 4 and keepdim and sorted(axis % 4 for axis in axes or ()) == [2, 3]
    return int(prod(x)) if is_pooling else 0


def _first(out: Any) -> Any:
    """Max pooling gives maxima and indices."""
    return out[0] if isinstance(out, tuple) and not isinstance(out, torch.Size) else out


_REST: dict[Any, Callable[..., int]] = {
    aten.relu: _elements,
    aten.relu_: _elements,
    aten.avg_pool2d: _window,
    aten.max_pool2d_with_indices: _window,
    aten._adaptive_avg_pool2d: _adaptive_window,
    aten.adaptive_max_pool2d: _adaptive_window,
    aten.mean: _global_average,
}
