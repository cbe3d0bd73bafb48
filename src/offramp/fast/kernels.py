"""Batch norm and ReLU of a unit: by the library's operators, or by one kernel that is compiled on this machine.

R rows (one a pixel, over the whole batch), C channels. A map is a matrix of rows `[R, C]`. What follows the ReLU lies
in parts, `[R, width]` each, whose widths add up to C and whose rows may lie apart, such as channels of a wider map.
"""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils import cpp_extension

from offramp.errors import UsageError

SOURCE = Path(__file__).with_name("units.cpp")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]  # sums keep their order


class Kernels(Protocol):
    """Batch norm, on the batch's own statistics, and ReLU; forward and backward."""

    def forward(self, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Tensor:
        """Fill the parts; gives statistics `[n, C]`: mean, unbiased variance, and what `backward` needs besides."""

    def backward(
        self,
        z_RC: Tensor,
        gain_C: Tensor,
        eps: float,
        stats_nC: Tensor,
        parts: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of z `[R, C]`, gain `[C]` and shift `[C]` for those of the parts."""


class Library:
    """By torch's own operators: nothing to build, any device."""

    def forward(self, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Tensor:
        """See `Kernels`."""
        mean_C, variance_C = torch.zeros_like(gain_C), torch.ones_like(gain_C)
        # With momentum 1 the running averages become those of this batch.
        y, _, inverse_C = torch.ops.aten.native_batch_norm(
            _as_map(z_RC), gain_C, shift_C, mean_C, variance_C, True, 1.0, eps
        )
        for part, y_part in zip(parts, torch.split(_as_rows(y), [part.shape[1] for part in parts], 1), strict=True):
            torch.clamp_min(y_part, 0, out=part)
        return torch.stack([mean_C, variance_C, inverse_C])

    def backward(
        self,
        z_RC: Tensor,
        gain_C: Tensor,
        eps: float,
        stats_nC: Tensor,
        parts: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        dy_RC = torch.empty_like(z_RC)
        widths = [part.shape[1] for part in parts]
        for part, gradient, target in zip(parts, gradients, torch.split(dy_RC, widths, 1), strict=True):
            torch.ops.aten.threshold_backward.grad_input(gradient, part, 0, grad_input=target)
        mean_C, _, inverse_C = stats_nC.unbind()
        dz, dgain_C, dshift_C = torch.ops.aten.native_batch_norm_backward(
            _as_map(dy_RC), _as_map(z_RC), gain_C, None, None, mean_C, inverse_C, True, eps, [True] * 3
        )
        return _as_rows(dz), dgain_C, dshift_C


class Compiled:
    """By `units.cpp`: one pass over memory for statistics, one for norm and ReLU, straight into the parts. CPU only.

    Raises:
        UsageError: No C++ compiler, or no ninja.
    """

    def __init__(self) -> None:
        _load()

    def forward(self, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, eps: float, parts: Sequence[Tensor]) -> Tensor:
        """See `Kernels`."""
        stats_nC: Tensor = torch.ops.offramp.norm_relu(z_RC, gain_C, shift_C, eps, list(parts))
        return stats_nC

    def backward(
        self,
        z_RC: Tensor,
        gain_C: Tensor,
        eps: float,
        stats_nC: Tensor,
        parts: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernels`."""
        dz_RC, dgain_C, dshift_C = torch.ops.offramp.norm_relu_backward(z_RC, stats_nC, list(gradients))
        return dz_RC, dgain_C, dshift_C


def why_not_compiled() -> str | None:
    """What this machine lacks for `Compiled`, in words; None where it lacks nothing."""
    compiler = cpp_extension.get_cxx_compiler()  # type: ignore[no-untyped-call]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler here ({compiler}; install g++)"
    if not cpp_extension.is_ninja_available():
        return "there is no ninja here (pip install 'offramp[kernels]')"
    return None


@functools.cache
def _load() -> None:
    """Build the kernels, or take those built before from torch's folder of extensions, and register them."""
    lacking = why_not_compiled()
    if lacking is not None:
        raise UsageError(f"Kernels cannot be compiled: {lacking}. Without them: --form merged.")
    cpp_extension.load("offramp_units", [str(SOURCE)], extra_cflags=FLAGS, is_python_module=False)


def _as_map(rows_RC: Tensor) -> Tensor:
    """`[1, C, R, 1]`, channels-last: one tall image."""
    return rows_RC[None, :, None, :].permute(0, 3, 1, 2)


def _as_rows(map_1CR1: Tensor) -> Tensor:
    return map_1CR1[0, :, :, 0].t()
