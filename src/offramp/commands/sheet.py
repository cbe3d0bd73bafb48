"""Images of a data set for the page: read from the data set, turned back into pixels, as PNG inside the page.

B images, C channels, H and W pixels.
"""

import base64
import contextlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from offramp.data import Split
from offramp.show.page import Sheet

LARGEST = 64  # pixels of the longer side on the page


class Picked(Protocol):
    """An image to look at."""

    @property
    def index(self) -> int:
        """Its position in the official training or test set."""


def sheet(picked: Sequence[Sequence[Picked]], split: Split) -> Sheet:
    """The picked images of `split`; no other image is read."""
    shares = [np.array([image.index for image in row], dtype=np.int64) for row in picked if row]
    with contextlib.closing(split.read(shares, None)) as read:
        addresses = iter([_addresses(images_BCHW, split) for _, images_BCHW in zip(shares, read, strict=True)])
    return Sheet(tuple(next(addresses) if row else () for row in picked), _shown_as(split))


def _addresses(images_BCHW: Tensor, split: Split) -> tuple[str, ...]:
    return tuple(_address(image_CHW) for image_CHW in _small(_scaled(images_BCHW, split)))


def _scaled(images_BCHW: Tensor, split: Split) -> Tensor:
    """Pixels in [0, 1]: normalisation undone where it is known, else each image from its least to its largest value."""
    inputs = split.inputs()
    if inputs is not None:
        mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (inputs.mean, inputs.std))
        return images_BCHW * std_C11 + mean_C11
    low_B111, high_B111 = images_BCHW.amin((1, 2, 3), keepdim=True), images_BCHW.amax((1, 2, 3), keepdim=True)
    return (images_BCHW - low_B111) / (high_B111 - low_B111).clamp(min=1e-12)


def _small(images_BCHW: Tensor) -> Tensor:
    """Grey or RGB, uint8, no side longer than `LARGEST`."""
    if images_BCHW.shape[1] not in (1, 3):
        images_BCHW = images_BCHW.mean(1, keepdim=True)
    height, width = images_BCHW.shape[2:]
    if max(height, width) > LARGEST:
        size = [max(1, round(side * LARGEST / max(height, width))) for side in (height, width)]
        images_BCHW = F.interpolate(images_BCHW, size, mode="bilinear", antialias=True)
    return (255 * images_BCHW).round().clamp(0, 255).to(torch.uint8)


def _address(image_CHW: Tensor) -> str:
    from torchvision.io import encode_png  # slow to import

    encoded: Tensor = encode_png(image_CHW.contiguous(), compression_level=9)
    return "data:image/png;base64," + base64.b64encode(encoded.numpy().tobytes()).decode()


def _shown_as(split: Split) -> str:
    channels, *sides = split.image_shape
    text = "The normalisation is undone"
    if split.inputs() is None:
        text = "Each image is scaled from its own smallest value to its largest, so that brightness is not comparable"
    if channels not in (1, 3):
        text += f"; grey is the mean over the {channels} channels"
    if max(sides) > LARGEST:
        text += f"; scaled down to {LARGEST} pixels"
    return f"{text}."
