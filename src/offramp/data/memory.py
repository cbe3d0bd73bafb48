"""Data sets that live in memory: one array of pixels, which all their splits index into and never copy.

On a GPU a split keeps the array there as well, and cuts its batches there.

B images of a batch, S images of the whole array, C channels, H and W pixels.
"""

import copy
import functools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offramp.data.augment import crop_and_flip, normalise
from offramp.data.base import Parts, Split
from offramp.data.inputs import CHANNELS, Inputs
from offramp.data.partition import Cut, divide
from offramp.data.randomness import Draw, IntArray
from offramp.devices import has_room, sent

_CHUNK = 1024  # images hashed at a time


@dataclass(frozen=True)
class Look:
    """How pixels become what a network sees: normalisation always, the rest for training only.

    Attributes:
        mean, std: Per channel, of pixels scaled to [0, 1] (uint8) or as they are (float32).
        padding: Width of the black border out of which the image is cropped at random.
        flip: Whether half the images are mirrored.
        by_channel: Whether each channel is cropped and mirrored by itself.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool
    by_channel: bool = False


class MemorySplit(Split):
    """A split of an array `[S, C, H, W]` of pixels, uint8 or float32, shared by all splits of it; see `Split`."""

    def __init__(
        self,
        pixels_SCHW: Tensor,
        labels_S: IntArray,
        name: str,
        indices_S: IntArray,
        training: bool,
        *,
        look: Look,
        class_names: Sequence[str],
        batch_size: int,
    ) -> None:
        channels, height, width = pixels_SCHW.shape[1:]
        super().__init__(
            name,
            labels_S[indices_S],
            indices_S,
            class_names=class_names,
            image_shape=(channels, height, width),
            batch_size=batch_size,
            training=training,
        )
        self.pixels_SCHW = pixels_SCHW
        self.look = look
        self._cut_from_SCHW = pixels_SCHW

    def on(self, device: torch.device) -> "MemorySplit":
        """See `Split.on`; it stays where it is if the pixels would take much of what is free there."""
        other = copy.copy(self)
        if has_room(device, self.pixels_SCHW.nbytes):
            other.device, other._cut_from_SCHW = device, self.pixels_SCHW.to(device)
        return other

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        """See `Split.read`; crops and mirrors a batch at a time."""
        mean_C, std_C = (sent(torch.tensor(values), self.device) for values in (self.look.mean, self.look.std))
        for indices_B in shares:
            images_BCHW = self._cut_from_SCHW[sent(torch.from_numpy(indices_B), self.device)]
            if draw is not None:
                images_BCHW = self._augmented(images_BCHW, indices_B, draw)
            yield normalise(images_BCHW, mean_C, std_C)

    def _augmented(self, images_BCHW: Tensor, indices_B: IntArray, draw: Draw) -> Tensor:
        parts = self.image_shape[0] if self.look.by_channel else 1
        uniforms = draw.uniforms(indices_B, 3 * parts).reshape(-1, 3)
        views = images_BCHW.reshape(len(uniforms), -1, *self.image_shape[1:])
        return crop_and_flip(views, self.look.padding, self.look.flip, uniforms).reshape(-1, *self.image_shape)

    def inputs(self) -> Inputs | None:
        """See `Split.inputs`: none for float32 pixels, whose range no file tells."""
        if self.pixels_SCHW.dtype != torch.uint8 or self.image_shape[0] not in CHANNELS:
            return None
        return Inputs(self.class_names, self.image_shape, self.look.mean, self.look.std, "central-fit")

    def content(self) -> Iterator[bytes]:
        """See `Split.content`: all pixels."""
        for first in range(0, len(self), _CHUNK):
            indices = torch.from_numpy(self.indices_S[first : first + _CHUNK])
            yield self.pixels_SCHW[indices].numpy().tobytes()


def statistics(pixels_SCHW: Tensor, indices_S: IntArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of the images at `indices_S`, of uint8 pixels scaled to [0, 1].

    A channel that does not vary gets the deviation 1.
    """
    count, total, squares = 0, 0.0, 0.0
    scale = 255.0 if pixels_SCHW.dtype == torch.uint8 else 1.0
    for first in range(0, len(indices_S), _CHUNK):
        chunk = pixels_SCHW[torch.from_numpy(indices_S[first : first + _CHUNK])].numpy().astype(np.float64) / scale
        count += chunk[:, 0].size
        total = total + chunk.sum((0, 2, 3))
        squares = squares + (chunk**2).sum((0, 2, 3))
    mean_C = np.asarray(total) / count
    std_C = np.sqrt(np.maximum(np.asarray(squares) / count - mean_C**2, 0))
    return tuple(mean_C.tolist()), tuple(np.where(std_C > 1e-6, std_C, 1.0).tolist())


def official_parts(
    name: str,
    train: tuple[Tensor, IntArray],
    test: tuple[Tensor, IntArray],
    cut: Cut,
    *,
    look: Look,
    class_names: Sequence[str],
    batch_size: int,
) -> Parts:
    """The parts of a data set whose publisher gives pixels and classes for training and for test."""
    split = functools.partial(MemorySplit, look=look, class_names=class_names, batch_size=batch_size)
    whole = split(*test, f"{name}/test", np.arange(len(test[1])), False)
    return divide(name, np.arange(len(train[1])), functools.partial(split, *train), whole, cut)
