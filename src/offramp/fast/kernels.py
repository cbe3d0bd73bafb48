"""Batch norm and ReLU of a unit: by the library's operators, or by one kernel that is compiled on this machine.

B images, C channels. Maps are `[B, height, width, C]`. What follows the ReLU lies in parts, `[B, height, width, own]`
each, whose channels add up to C and whose pixels may lie apart, such as channels of a wider map.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from offramp.fast.building import compiled

SOURCE = Path(__file__).with_name("units.cpp")
NARROW = 64  # channels

Kept = tuple[Tensor, ...]


class Kernels(Protocol):
    """Batch norm, on the batch's own statistics, and ReLU; forward and backward."""

    def forward(self, z_BHWC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Kept:
        """Fill the parts; gives what `backward` needs, first of all mean and unbiased variance `[C]`."""

    def backward(
        self, gain_C: Tensor, eps: float, kept: Kept, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of z `[B, height, width, C]`, gain `[C]` and shift `[C]` for those of the parts."""


class Library:
    """By torch's own operators: nothing to build, any device.

    Measured on a CPU, two threads, 6 to 40 channels, bfloat16: its batch norm of channels-last maps takes up to twenty
    times as long as that of maps with a plane for each channel, so narrow maps are turned on the way in, and turned
    back as they are written into their parts.
    """

    def forward(self, z_BHWC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Kept:
        """See `Kernels`."""
        z = _turned(z_BHWC)
        mean_C, variance_C = torch.zeros_like(gain_C), torch.ones_like(gain_C)
        y, own_mean_C, inverse_C = torch.ops.aten.native_batch_norm(
            *(z, gain_C, shift_C, mean_C, variance_C, True, 1.0, eps)  # momentum 1: the averages are this batch's
        )
        y.relu_()
        for part, y_part in zip(parts, torch.split(y, [part.shape[-1] for part in parts], 1), strict=True):
            part.copy_(y_part.permute(0, 2, 3, 1))
        return mean_C, variance_C, own_mean_C, inverse_C, z, y

    def backward(
        self, gain_C: Tensor, eps: float, kept: Kept, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        _, _, mean_C, inverse_C, z, y = kept
        dy = torch.empty_like(y)
        for given, target in zip(gradients, torch.split(dy, [g.shape[-1] for g in gradients], 1), strict=True):
            target.copy_(given.permute(0, 3, 1, 2))
        dz, dgain_C, dshift_C = torch.ops.aten.native_batch_norm_backward(
            *(torch.ops.aten.threshold_backward(dy, y, 0), z, gain_C, None, None, mean_C, inverse_C, True, eps),
            [True] * 3,
        )
        return dz.permute(0, 2, 3, 1).contiguous(), dgain_C, dshift_C


class Compiled:
    """By `units.cpp`: two passes over memory forward and two backward, straight into and out of the parts. CPU only.

    Raises:
        UsageError: There is no C++ compiler here, or it cannot compile them.
    """

    def __init__(self) -> None:
        _load()

    def forward(self, z_BHWC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Kept:
        """See `Kernels`."""
        rows = [part.flatten(0, 2) for part in parts]
        stats_5C = torch.ops.offramp.norm_relu(z_BHWC.flatten(0, 2), gain_C, shift_C, eps, rows)
        return stats_5C[0], stats_5C[1], stats_5C, z_BHWC

    def backward(
        self, gain_C: Tensor, eps: float, kept: Kept, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        _, _, stats_5C, z_BHWC = kept
        rows = [gradient.flatten(0, 2) for gradient in gradients]
        dz_RC, dgain_C, dshift_C = torch.ops.offramp.norm_relu_backward(z_BHWC.flatten(0, 2), stats_5C, rows)
        return dz_RC.view(z_BHWC.shape), dgain_C, dshift_C


@functools.cache
def _load() -> None:
    """Register the kernels with torch, once in a process."""
    torch.ops.load_library(str(compiled(SOURCE)))  # type: ignore[no-untyped-call]


def _turned(z_BHWC: Tensor) -> Tensor:
    """`[B, C, height, width]`, as torch's batch norm is fastest for it."""
    z = z_BHWC.permute(0, 3, 1, 2)
    return z.contiguous() if z.shape[1] < NARROW else z
