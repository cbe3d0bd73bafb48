"""The backward pass of a convolution with stride as matrix products of patches.

R rows (one an output pixel, over the whole batch); I and O channels in and out. A patch is what one output pixel reads:
kernel height x kernel width x I numbers.

Measured once while building, in bfloat16 on a CPU, for the exits' convolutions of MSDNet-7 (88 to 368 channels to 128,
stride 2): about half the time of the library's convolution. With few channels the copies cost more than the products
gain.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

FEWEST_CHANNELS = 64


def pay(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
    """Whether patches are the faster way."""
    wide = min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
    plain = conv.groups == 1 and conv.dilation == (1, 1) and not isinstance(conv.padding, str)
    return dtype == torch.bfloat16 and wide and plain and min(conv.stride) > 1 and min(conv.kernel_size) > 1


def weight_gradient(conv: nn.Conv2d, x_BHWI: Tensor, dz_RO: Tensor) -> Tensor:
    """`[O, I, kernel height, kernel width]`."""
    (height, width), (down, right), (above, left) = _geometry(conv)
    padded = F.pad(x_BHWI, (0, 0, left, left, above, above)).contiguous()
    B, H, W, I = padded.shape  # noqa: E741
    rows, columns = (H - height) // down + 1, (W - width) // right + 1
    image, row, pixel, _ = padded.stride()
    # The pixels of a patch's line are neighbours in memory: copied as one.
    lines = padded.as_strided(
        (B, rows, columns, height, width * I), (image, down * row, right * pixel, row, 1), padded.storage_offset()
    )
    dweight = dz_RO.t() @ lines.reshape(len(dz_RO), -1)
    return dweight.view(-1, height, width, I).permute(0, 3, 1, 2)


def add_input_gradient(conv: nn.Conv2d, weight: Tensor, dz_RO: Tensor, gradient_BHWI: Tensor) -> None:
    """Add to the gradient of the input, whose every pixel is part of several patches."""
    (height, width), (down, right), (above, left) = _geometry(conv)
    B, H, W, I = gradient_BHWI.shape  # noqa: E741
    rows, columns = (H + 2 * above - height) // down + 1, (W + 2 * left - width) // right + 1
    patches = (dz_RO @ weight.permute(0, 2, 3, 1).reshape(len(weight), -1)).view(B, rows, columns, height, width, I)
    for i, (read, written) in _meeting(H, height, down, above, rows):
        for j, (read_across, written_across) in _meeting(W, width, right, left, columns):
            gradient_BHWI[:, written, written_across].add_(patches[:, read, read_across, i, j])


def _geometry(conv: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sides of the kernel, strides, and padding in numbers."""
    return conv.kernel_size, conv.stride, tuple(map(int, conv.padding))


def _meeting(
    side: int, kernel: int, stride: int, padding: int, outputs: int
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """For each place in a kernel: the outputs whose patch meets the map there, not its padding, and where it does."""
    for place in range(kernel):
        first = max(0, -((place - padding) // stride))
        last = min(outputs - 1, (side - 1 + padding - place) // stride)
        if first <= last:
            start, stop = first * stride + place - padding, last * stride + place - padding
            yield place, (slice(first, last + 1), slice(start, stop + 1, stride))
