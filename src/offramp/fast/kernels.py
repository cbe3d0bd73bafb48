"""Batch norm and ReLU of a unit: by the library's operators, or by one kernel that is compiled on this machine.

R rows (one a pixel, over the whole batch), C channels. A map is a matrix of rows `[R, C]`. What follows the ReLU lies
in parts, `[R, width]` each, whose widths add up to C and whose rows may lie apart, such as channels of a wider map.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from offramp.fast.building import compiled

SOURCE = Path(__file__).with_name("units.cpp")


Kept = tuple[Tensor, ...]


class Kernels(Protocol):
    """Batch norm, on the batch's own statistics, and ReLU; forward and backward."""

    def forward(self, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Kept:
        """Fill the parts; gives what `backward` needs, first of all mean and unbiased variance in the rows of one."""

    def backward(
        self, z_RC: Tensor, gain_C: Tensor, eps: float, kept: Kept, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of z `[R, C]`, gain `[C]` and shift `[C]` for those of the parts."""


class Library:
    """By torch's own operators: nothing to build, any device."""

    def forward(self, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Kept:
        """See `Kernels`."""
        stats_4C = gain_C.new_zeros(4, len(gain_C))
        mean_C, variance_C, own_mean_C, inverse_C = stats_4C
        # One part that is a whole map is written in place; others are cut out of a whole one, which is faster than
        # to write rows that lie apart.
        y_RC = parts[0] if len(parts) == 1 and parts[0].is_contiguous() else torch.empty_like(z_RC)
        torch.ops.aten.native_batch_norm.out(
            *(
                _as_map(z_RC),
                gain_C,
                shift_C,
                mean_C,
                variance_C,
                True,
                1.0,
                eps,
            ),  # momentum 1: averages are this batch's
            out=_as_map(y_RC),
            save_mean=own_mean_C,
            save_invstd=inverse_C,
        )
        y_RC.relu_()
        if y_RC is not parts[0]:
            for part, y_part in zip(parts, torch.split(y_RC, [part.shape[1] for part in parts], 1), strict=True):
                part.copy_(y_part)
        return stats_4C, y_RC

    def backward(
        self, z_RC: Tensor, gain_C: Tensor, eps: float, kept: Kept, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        (_, _, mean_C, inverse_C), y_RC = kept
        dy_RC = gradients[0].contiguous() if len(gradients) == 1 else torch.cat(list(gradients), 1)
        dy_RC = torch.ops.aten.threshold_backward(dy_RC, y_RC, 0)
        dz, dgain_C, dshift_C = torch.ops.aten.native_batch_norm_backward(
            _as_map(dy_RC), _as_map(z_RC), gain_C, None, None, mean_C, inverse_C, True, eps, [True] * 3
        )
        return _as_rows(dz), dgain_C, dshift_C


class Compiled:
    """By `units.cpp`: two passes over memory forward and two backward, straight into and out of the parts. CPU only.

    Raises:
        UsageError: There is no C++ compiler here, or it cannot compile them.
    """

    def __init__(self) -> None:
        _load()

    def forward(self, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Kept:
        """See `Kernels`."""
        return (torch.ops.offramp.norm_relu(z_RC, gain_C, shift_C, eps, list(parts)),)

    def backward(
        self, z_RC: Tensor, gain_C: Tensor, eps: float, kept: Kept, gradients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        dz_RC, dgain_C, dshift_C = torch.ops.offramp.norm_relu_backward(z_RC, *kept, list(gradients))
        return dz_RC, dgain_C, dshift_C


@functools.cache
def _load() -> None:
    """Register the kernels with torch, once in a process."""
    torch.ops.load_library(str(compiled(SOURCE)))  # type: ignore[no-untyped-call]


def _as_map(rows_RC: Tensor) -> Tensor:
    """`[1, C, R, 1]`, channels-last: one tall image."""
    return rows_RC[None, :, None, :].permute(0, 3, 1, 2)


def _as_rows(map_1CR1: Tensor) -> Tensor:
    return map_1CR1[0, :, :, 0].t()
