"""The memory of an optimiser as tensors by name, for a checkpoint: `momentum_buffer.stages.0.weight`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def state_by_name(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """What `optimizer` remembers of the parameters of `network`."""
    return {
        f"{key}.{name}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_state_by_name(optimizer: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `state_by_name`.

    Not the optimiser's own way: that keeps the memory layout of the file; fused steps need the weights'.
    """
    parameters = dict(network.named_parameters())
    for full_name, tensor in state.items():
        key, _, name = full_name.partition(".")
        like = parameters[name]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        optimizer.state[like][key] = tensor.to(like.device, copy=True)
