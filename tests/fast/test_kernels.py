"""Both kernels are batch norm and ReLU, and what autograd makes of them."""

import itertools
import shutil

import pytest
import torch
from torch import Tensor, nn

from offramp.fast import Compiled, Kernels, Library

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no compiler")
KERNELS = [Library, pytest.param(Compiled, marks=needs_compiler)]
EPS = 1e-3


def textbook(z_RC: Tensor, gain_C: Tensor, shift_C: Tensor) -> Tensor:
    return nn.functional.batch_norm(z_RC, None, None, gain_C, shift_C, training=True, eps=EPS).relu()


def tall(rows_RC: Tensor) -> Tensor:
    """Rows as the pixels of one image."""
    return rows_RC[None, :, None]


def run(
    kernels: Kernels, z_RC: Tensor, gain_C: Tensor, shift_C: Tensor, widths: list[int], dy_RC: Tensor
) -> tuple[Tensor, ...]:
    """Each part lies in a map that is wider; what is beside it has to stay as it is."""
    maps = [torch.full((len(z_RC), width + 3), 7.0, dtype=z_RC.dtype) for width in widths]
    parts = [whole[:, 1 : 1 + width] for whole, width in zip(maps, widths, strict=True)]
    kept = kernels.forward(tall(z_RC), gain_C, shift_C, EPS, list(map(tall, parts)))
    for whole in maps:
        assert (whole[:, [0, -2, -1]] == 7).all()
    given = [torch.cat([torch.full_like(dy[:, :1], 9), dy], 1)[:, 1:] for dy in dy_RC.split(widths, 1)]
    assert not any(dy.is_contiguous() for dy in given if len(dy) > 1)
    dz, *others = kernels.backward(gain_C, EPS, kept, list(map(tall, given)))
    return (torch.cat(parts, 1), *(row.clone() for row in kept[:2]), dz.flatten(0, 2), *others)


def inputs(rows: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    z, dy = (torch.randn(rows, channels, dtype=torch.float64) * 3 + 1 for _ in range(2))
    gain, shift = torch.randn(2, channels, dtype=torch.float64)
    return z.to(dtype), gain.to(stats), shift.to(stats), dy.to(dtype)


def wanted(z: Tensor, gain: Tensor, shift: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.double().requires_grad_() for x in (z, gain, shift)]
    y = textbook(*leaves)
    return (y.detach(), z.double().mean(0), z.double().var(0), *torch.autograd.grad(y, leaves, dy.double()))


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    ("rows", "channels"),
    [*itertools.product([2, 5, 16, 1031], [1, 3, 16, 17, 200]), (16385, 1), (5462, 3), (16385, 16)],
)
def test_both_are_batch_norm_and_relu(kind: type, rows: int, channels: int) -> None:
    """Rows that fill no block, one block, and some blocks and one row."""
    z, gain, shift, dy = inputs(rows, channels)
    widths = [channels] if channels < 3 else [1, channels // 2, channels - 1 - channels // 2]
    found = run(kind(), z, gain, shift, widths, dy)
    torch.testing.assert_close(found, wanted(z, gain, shift, dy), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_short_types(kind: type, dtype: torch.dtype, tolerance: float) -> None:
    """Near the kink of the ReLU a gradient is either: there none is given."""
    z, gain, shift, dy = inputs(3000, 24, dtype)
    near = nn.functional.batch_norm(z.double(), None, None, gain.double(), shift.double(), True, eps=EPS).abs() < 1e-4
    dy[near] = 0
    found = run(kind(), z, gain, shift, [10, 14], dy)
    for one, other in zip(found, wanted(z, gain, shift, dy), strict=True):
        assert (one.double() - other).norm() < tolerance * other.norm()


@needs_compiler
def test_a_far_mean_costs_no_variance() -> None:
    """The square's mean less the mean's square would be noise here, in float32."""
    z, gain, shift, dy = inputs(5000, 5, torch.float32)
    found = run(Compiled(), z + 3000, gain, shift, [5], dy)
    torch.testing.assert_close(found[2].double(), (z + 3000).double().var(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_passes_through(kind: type, dtype: torch.dtype, poison: float) -> None:
    """Where the modules give NaN, so does this, in this channel alone; a gradient that is not finite is none either."""
    z, gain, shift, dy = inputs(40, 18, dtype)
    z[7, 3] = poison
    dy[5, 8] = poison
    z[5, 8], gain[8], shift[8] = 9, 1, 9  # the ReLU is open
    leaves = [z.clone().requires_grad_(), gain.clone().requires_grad_(), shift.clone().requires_grad_()]
    y = textbook(*leaves)
    truth = (y.detach(), *torch.autograd.grad(y, leaves, dy))
    found = run(kind(), z, gain, shift, [18], dy)
    for one, other in zip((found[0], *found[3:]), truth, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        if dtype == torch.float64:
            torch.testing.assert_close(one, other, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_compiled_kernels_give_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    z, gain, shift, dy = inputs(20_000, 7, dtype)
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(Compiled(), z, gain, shift, [3, 4], dy))
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@needs_compiler
def test_compiled_kernels_refuse_what_they_would_misread() -> None:
    z, gain, shift, dy = inputs(6, 4)
    kernels = Compiled()
    out = torch.empty(6, 4, dtype=z.dtype)
    for bad in ([out[:, :3]], [out[:5]], [out.float()], [torch.empty(4, 6, dtype=z.dtype).t()], [out, out]):
        with pytest.raises(RuntimeError, match="part"):
            kernels.forward(tall(z), gain, shift, EPS, list(map(tall, bad)))
    for wrong in (z.t(), z[:0], z.half()):
        with pytest.raises(RuntimeError):
            kernels.forward(tall(wrong), gain, shift, EPS, [tall(out)])
    with pytest.raises(RuntimeError, match="gain and shift"):
        kernels.forward(tall(z), gain.float(), shift, EPS, [tall(out)])
    kept = kernels.forward(tall(z), gain, shift, EPS, [tall(out)])
    with pytest.raises(RuntimeError, match="part"):
        kernels.backward(gain, EPS, kept, [tall(dy[:, :2])])
    for short in (gain[:2], gain[:0]):
        with pytest.raises(RuntimeError, match="gain and shift"):
            kernels.forward(tall(z), short, shift, EPS, [tall(out)])
