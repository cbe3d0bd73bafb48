"""From an image file to what a network sees, without the data set at hand.

C channels, H and W pixels, N classes.
"""

import functools
import math
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from offramp.checks import check_choice, check_number
from offramp.data.augment import central_cut, central_fit, grey, normalise
from offramp.data.headers import has_more_scans, size_of
from offramp.errors import OfframpError, UsageError, first_line
from offramp.json_files import convert, read, write
from offramp.network import EarlyExitNet

FORMAT = 1  # of the file
CHANNELS = (1, 3)  # grey, or red, green, blue
MAX_MEGAPIXELS = 100.0  # 0.3 GB when decoded
MAX_SCANS = 64  # of a JPEG file; encoders write about 10. Each may be a few bytes, and is decoded for every pixel
_BYTES_A_PIXEL = 8  # in a file, at most: 16 bits of four channels, not compressed
_BYTES_BESIDE = 2**26  # in a file, beside its pixels: profiles, thumbnails, texts
_MAX_ASPECT = 1000  # central-cut resizes before it cuts: one thin image could fill the memory
Resizing = Literal["central-cut", "central-fit"]


@dataclass(frozen=True)
class Inputs:
    """How an image file becomes a network's input, and what the network's answers are called.

    Attributes:
        image_shape: `(C, H, W)` of the input. With one channel images become grey by the usual luma.
        mean, std: Per channel, of pixels scaled to [0, 1].
        resizing: `central-cut`: the shorter side is resized to 256 for 224 pixels, and in proportion otherwise, and the
            centre cut out (the test transform of image files). `central-fit`: the largest central crop of the input's
            aspect is resized to it; an image that has the input's size is left as it is.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        if len(self.image_shape) != 3:
            raise UsageError(f"image_shape must be (channels, height, width), not {self.image_shape}.")
        channels, height, width = self.image_shape
        if channels not in CHANNELS or min(height, width) < 1:
            raise UsageError(f"Images must have 1 or 3 channels, and at least one pixel, not {self.image_shape}.")
        if not len(self.mean) == len(self.std) == channels:
            raise UsageError(
                f"There must be one mean and one std a channel, {channels} of each, not {len(self.mean)} and "
                f"{len(self.std)}."
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"Mean must be finite, std finite and above 0; found {self.mean}, {self.std}.")
        check_choice("resizing", self.resizing, get_args(Resizing))
        if self.resizing == "central-cut" and height != width:
            raise UsageError(f"central-cut makes square images, not {height} x {width}.")

    def read(self, path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor:
        """The image in a file as a network sees it, float32 `[C, H, W]`, normalised; errors as of `decode`."""
        return self._seen(decode(Path(path), max_megapixels), path)

    def read_content(self, content: bytearray, name: str, *, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor:
        """The same of what is in a file; `name` is for errors."""
        return self._seen(decode_content(content, name, max_megapixels), name)

    def prepare(self, images: Any) -> Tensor:
        """See `EarlyExitNet.preprocess`."""
        items = images if isinstance(images, (list, tuple)) else [images]
        seen = [self._seen(decode(Path(i)) if isinstance(i, (str, Path)) else pixels(i), "An image") for i in items]
        return torch.stack(seen) if seen else torch.empty(0, *self.image_shape)

    def _seen(self, image_CHW: Tensor, name: str | Path) -> Tensor:
        channels, height, width = self.image_shape
        if channels == 1:
            image_CHW = grey(image_CHW)
        if self.resizing == "central-cut":
            not_too_thin(image_CHW, name)
            image_CHW = central_cut(image_CHW, height)
        else:
            image_CHW = central_fit(image_CHW, (height, width))
        return normalise(image_CHW, *self._mean_and_std)

    @functools.cached_property
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean), torch.tensor(self.std)

    def check_network(self, network: EarlyExitNet, run: Path) -> None:
        """Refuse a run's network of other classes, or for images of another shape."""
        if len(self.class_names) != network.num_classes:
            raise UsageError(f"{run}: there are {len(self.class_names)} class names for {network.num_classes} classes.")
        if network.image_shape is not None and tuple(network.image_shape) != tuple(self.image_shape):
            raise UsageError(
                f"{run}: the network was made for images of shape {tuple(network.image_shape)}, not "
                f"{tuple(self.image_shape)} (channels, height, width)."
            )

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        write(Path(path), {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Inputs":
        """Read what `save` wrote; errors as of `json_files.read`."""
        values = read(Path(path), dict[str, Any], newest=FORMAT)
        return convert({key: value for key, value in values.items() if key != "format"}, cls, path, exact=True)


def not_too_thin(image_CHW: Tensor, path: str | Path) -> None:
    """Refuse an image that `central_cut` would make so long that it fills the memory."""
    shorter, longer = sorted(image_CHW.shape[1:])
    if longer > _MAX_ASPECT * shorter:
        raise OfframpError(f"{path} has {longer} times {shorter} pixels, too thin to be resized. Crop it.")


def pixels(image: Any) -> Tensor:
    """Uint8 RGB `[3, H, W]` of an image of Pillow, or of uint8 pixels: `[H, W]`, `[H, W, 3]`, of torch `[C, H, W]`."""
    from PIL import Image, ImageOps  # here: few need it

    if isinstance(image, Image.Image):
        image = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    rows = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if isinstance(rows, Tensor) and rows.dtype == torch.uint8 and rows.numel():
        if rows.ndim == 3 and isinstance(image, np.ndarray):
            rows = rows.permute(2, 0, 1)
        rows = rows[None] if rows.ndim == 2 else rows
        if rows.ndim == 3 and len(rows) in CHANNELS:
            return rows.expand(3, -1, -1).contiguous()
    what = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(image).__name__
    raise UsageError(
        f"An image must be a path, an image of Pillow, or uint8 pixels [H, W], [H, W, 3] or, of torch, [C, H, W], not "
        f"{what}."
    )


def decode(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor:
    """The image in a file as uint8 RGB `[3, H, W]`, turned as its EXIF data say; grey, CMYK and alpha are converted.

    An image of more than `max_megapixels` million pixels, by its header, is refused and not decoded.
    """
    try:
        content = _content(path, max_megapixels)
    except (ValueError, OSError, MemoryError) as error:
        raise _unreadable(path, error) from error
    return decode_content(content, path, max_megapixels)


def decode_content(content: bytearray, name: str | Path, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor:
    """The same of what is in a file; `name` is for errors."""
    from torchvision.io import ImageReadMode, decode_image  # slow to import

    try:
        size = size_of(content)
        if size is None:
            raise ValueError("it is no PNG, JPEG or WebP file, or its header is damaged")
        if math.prod(size) > max_megapixels * 1e6:
            raise OfframpError(
                f"{name} has {size[0]} times {size[1]} pixels, more than {max_megapixels:g} million. Shrink it, or "
                "raise max-megapixels."
            )
        if has_more_scans(content, MAX_SCANS):
            raise ValueError(f"its pixels come in more than {MAX_SCANS} scans")
        encoded = torch.frombuffer(content, dtype=torch.uint8)
        image_CHW: Tensor = decode_image(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
        if sorted(image_CHW.shape[1:]) != sorted(size):  # EXIF data may turn it
            raise ValueError("its header says another size")
    except (RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, OfframpError):
            raise
        raise _unreadable(name, error) from error
    if image_CHW.dtype == torch.uint16:  # PNG files with 16 bits
        image_CHW = image_CHW.to(torch.int32).bitwise_right_shift(8).to(torch.uint8)
    return image_CHW


def _unreadable(name: str | Path, error: Exception) -> OfframpError:
    """The system's word, or the first sentence of a decoder's, without the place in its source that it begins with."""
    reason = re.sub(r"^\S+, \S+:\d+, ", "", first_line(error)).partition(". ")[0].removesuffix(".")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else reason
    return OfframpError(f"{name} cannot be read as an image ({reason}). Mend, replace or remove it.")


def check_megapixels(value: float) -> None:
    """Refuse a limit that is no number, or below one pixel."""
    check_number("max-megapixels", value, "of at least 0.000001, one pixel", lambda value: value >= 1e-6)


def _content(path: Path, max_megapixels: float) -> bytearray:
    """What is in a regular file. Nothing else is read, nor opened: a FIFO or a device may never end."""
    _check_regular(path.stat())
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:  # a FIFO waits else
        status = os.fstat(file.fileno())
        _check_regular(status)  # again: this is what is read
        if status.st_size > max_megapixels * 1e6 * _BYTES_A_PIXEL + _BYTES_BESIDE:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {max_megapixels:g} million pixels take")
        content = bytearray(file.read())
    if not content:
        raise ValueError("the file is empty")
    return content


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
