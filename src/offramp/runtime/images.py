"""Images as they are handed to an engine: a batch as one tensor, or a line that says what is wrong with it.

B images of a batch.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.network import EarlyExitNet, Preprocessing

Images = Tensor | npt.NDArray[np.floating[Any]] | Sequence[Any]


def as_images(images: Any, network: EarlyExitNet) -> Tensor:
    """A batch `[B, channels, height, width]` of floats, B from 0 up, of the network's `image_shape` where it says one.

    It may come as a tensor, a NumPy array, or a list or tuple of images that are either; anything else is refused.
    Tensors stay what and where they are. What is not finite is let through: such an image has no confidence, and
    leaves at the last exit.
    """
    if isinstance(images, Tensor):
        images_BCHW = images
    elif isinstance(images, (list, tuple)) and not images:
        images_BCHW = torch.empty(0, *(network.image_shape or ()))
    else:
        images_BCHW = _tensor(images)
    check_images(images_BCHW, network.image_shape)
    return images_BCHW


def check_images(images_BCHW: Tensor, image_shape: Sequence[int] | None) -> None:
    """Refuse a tensor that is no batch of floats, or not of images `(channels, height, width)` where that is known."""
    shape = images_BCHW.shape
    if not shape or (image_shape is not None and shape[1:] != tuple(image_shape)):
        sides = ", ".join(map(str, image_shape or ("channels", "height", "width")))
        raise UsageError(f"Images must be a batch [B, {sides}], not {[*shape]}.")
    if not images_BCHW.is_floating_point():
        raise UsageError(f"Images must be floats, normalised as in training, not {images_BCHW.dtype}.")


def warn_of_odd(images_BCHW: Tensor, inputs: Preprocessing) -> None:
    """Warn of images that were hardly prepared as in training: pixels from 0 to 255 or to 1, normalised twice."""
    edges = [[(pixel - mean) / std for pixel in (0, 1)] for mean, std in zip(inputs.mean, inputs.std, strict=True)]
    low, high = min(low for low, _ in edges), max(high for _, high in edges)
    images = images_BCHW.detach().float()
    mean, deviation = float(images.mean()), float(images.std(correction=0))
    smallest, largest = (float(edge) for edge in images.aminmax())
    slack = (high - low) / 10
    # Numbers from `low` to `high` deviate from their mean by at most half of that range.
    beyond = mean < low - slack or mean > high + slack or deviation > (high - low) / 2 + slack
    raw = high - low > 2 and smallest >= 0 and largest <= 1 and largest - smallest > 0.9
    if beyond or raw:
        warnings.warn(
            f"Are these images normalised as in training? They have numbers from {smallest:.3g} to {largest:.3g}, mean "
            f"{mean:.2g}; the network was trained on numbers from {low:.3g} to {high:.3g}. network.preprocess(image) "
            "prepares images.",
            stacklevel=4,
        )


def spread(images_SCHW: Tensor, most: int) -> Tensor:
    """The images, or `most` of them, evenly spread."""
    num_images = len(images_SCHW)
    if num_images <= most:
        return images_SCHW
    return images_SCHW[torch.arange(most, device=images_SCHW.device) * num_images // most]


def _tensor(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        return images
    if isinstance(images, (list, tuple)) and any(isinstance(image, Tensor) for image in images):
        tensors = [_tensor(image) for image in images]
        shapes = dict.fromkeys(tuple(tensor.shape) for tensor in tensors)
        if len(shapes) > 1:
            raise UsageError(f"Images of a batch must have one size, not {' and '.join(map(str, shapes))}.")
        return torch.stack(tensors)
    if not isinstance(images, (np.ndarray, list, tuple)):
        raise UsageError(
            f"Images must be a tensor, a NumPy array or a list of either, not a {type(images).__name__}; "
            "for image files there is `offramp predict`."
        )
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise UsageError("Images of a batch must have one size; this list holds several.") from error
    if array.dtype.kind != "f":
        raise UsageError(f"Images must be floats, normalised as in training, not {array.dtype}.")
    # Into a type that torch has (not every float of NumPy's is one), in memory that may be written to.
    return torch.from_numpy(array.astype(np.float64 if array.itemsize > 4 else np.float32))
