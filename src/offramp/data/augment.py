"""Transforms, written as functions of pixels and of the random numbers they use.

B images of a batch, C channels, H and W pixels. Pixels are uint8 (0 to 255) unless said otherwise.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from offramp.devices import sent

Uniforms = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]  # top, left, height, width

CROP_ATTEMPTS = 10
CROP_UNIFORMS = 4 * CROP_ATTEMPTS  # numbers in [0, 1) that `random_box` uses
_MIN_AREA = 0.08  # share of the image; with the aspects below the defaults of the usual library (protocols, 2.2)
_MAX_ASPECT = 4 / 3  # and 3/4 at least
_RESIZE_RATIO = 256 / 224  # shorter side over centre crop at test time


def normalise(images_BCHW: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Float32 images, per channel less the mean and over the deviation; uint8 pixels are scaled to [0, 1] first.

    The same bits on every device.
    """
    mean_C11, std_C11 = mean_C.view(-1, 1, 1), std_C.view(-1, 1, 1)
    if images_BCHW.dtype == torch.uint8:
        # By a tensor: by a number, a GPU multiplies with the reciprocal, which is rounded. One new tensor: its pages
        # cost the most.
        white = mean_C.new_full((), 255)
        return images_BCHW.float().div_(white).sub_(mean_C11).div_(std_C11)
    return (images_BCHW - mean_C11).div_(std_C11)


def crop_and_flip(images_BCHW: Tensor, padding: int, flip: bool, uniforms_B3: Uniforms) -> Tensor:
    """Each image cropped at random out of itself with a black border, then mirrored with probability 1/2.

    The border is black because padding happens here, in pixel space, before normalisation (protocols, 2.2). An image's
    three numbers decide on the row, the column and the mirroring; these are decided on the CPU, wherever the images
    are, and on every device alike.
    """
    height, width = images_BCHW.shape[-2:]
    device = images_BCHW.device
    uniforms = torch.from_numpy(uniforms_B3)
    if padding:
        top_B, left_B = sent((uniforms[:, :2] * (2 * padding + 1)).long(), device).unbind(1)
        padded = F.pad(images_BCHW, (padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, H, W], a view
        images_BCHW = windows[torch.arange(len(padded), device=device), :, top_B, left_B]
    if flip:
        mirrored_B111 = sent(uniforms[:, 2] < 0.5, device).view(-1, 1, 1, 1)
        images_BCHW = torch.where(mirrored_B111, images_BCHW.flip(-1), images_BCHW)
    return images_BCHW


def random_box(height: int, width: int, uniforms: Uniforms) -> Box:
    """A box of 8 to 100 % of the image's area and aspect 3/4 to 4/3, by `CROP_UNIFORMS` numbers.

    A draw that does not fit is repeated, ten times at most; then it is the largest central box of an allowed aspect.
    """
    for area, aspect, down, across in uniforms[:CROP_UNIFORMS].reshape(CROP_ATTEMPTS, 4):
        target = height * width * (_MIN_AREA + (1 - _MIN_AREA) * area)
        ratio = _MAX_ASPECT ** (2 * aspect - 1)  # uniform in its logarithm
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
    h = min(height, round(width * _MAX_ASPECT))
    w = min(width, round(height * _MAX_ASPECT))
    return (height - h) // 2, (width - w) // 2, h, w


def central_box(height: int, width: int, image_size: int) -> tuple[tuple[int, int], Box]:
    """Test transform: the size to resize to, and the central box of `image_size` pixels to cut out then.

    The shorter side becomes 256 for 224 pixels, and in proportion otherwise.
    """
    shorter = round(image_size * _RESIZE_RATIO)
    longer = int(shorter * max(height, width) / min(height, width))
    resized = (shorter, longer) if height <= width else (longer, shorter)
    top, left = (round((side - image_size) / 2) for side in resized)
    return resized, (top, left, image_size, image_size)


def resize(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The image at `(height, width)`: bilinear, antialiased when it shrinks, rounded to uint8."""
    return F.interpolate(image_CHW[None], size, mode="bilinear", antialias=True)[0]


def cut(image_CHW: Tensor, box: Box) -> Tensor:
    """The pixels in `box`, a view."""
    top, left, height, width = box
    return image_CHW[:, top : top + height, left : left + width]


def central_cut(image_CHW: Tensor, image_size: int) -> Tensor:
    """The test transform of image files: resized and cut as `central_box` says."""
    height, width = image_CHW.shape[1:]
    resized, box = central_box(height, width, image_size)
    return cut(resize(image_CHW, resized), box)


def central_fit(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest central crop of the aspect of `size` (height, width), resized to it; as it is if it has that size."""
    height, width = image_CHW.shape[1:]
    h = max(1, min(height, round(width * size[0] / size[1])))
    w = max(1, min(width, round(height * size[1] / size[0])))
    image_CHW = cut(image_CHW, ((height - h) // 2, (width - w) // 2, h, w))
    return image_CHW if (h, w) == size else resize(image_CHW, size)


def grey(image_3HW: Tensor) -> Tensor:
    """One channel `[1, H, W]` of RGB pixels: the usual luma (0.299, 0.587, 0.114), rounded; grey stays as it is."""
    red_HW, green_HW, blue_HW = image_3HW
    if torch.equal(red_HW, green_HW) and torch.equal(red_HW, blue_HW):  # of a grey file; the sum below gives the same
        return image_3HW[:1]
    luma_HW = red_HW.int().mul_(19595)  # shares of 65536; in place, because a photo may have a hundred million pixels
    luma_HW.add_(green_HW.int(), alpha=38470).add_(blue_HW.int(), alpha=7471).add_(32768)
    grey_HW: Tensor = luma_HW.bitwise_right_shift_(16).to(torch.uint8)
    return grey_HW[None]
