"""The data contract: a `Split` is one part of a data set with its transform; `Parts` are the three of them.

B images of a batch, S images of a split, C channels, H and W pixels.
"""

import contextlib
import copy
import functools
import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import torch
from torch import Tensor

from offramp.batch import Batch
from offramp.checks import check_whole
from offramp.config import DataConfig, Spec
from offramp.data.inputs import Inputs
from offramp.data.randomness import Draw, IntArray, Purpose, permutation
from offramp.errors import UsageError
from offramp.processes import share_of

P = ParamSpec("P")
SETTINGS = ("root", "batch_size", "holdout", "workers", "skip_unreadable")  # of DataConfig: arguments of builders


class Split(ABC):
    """One part of a data set with its transform.

    A data set of a kind of its own subclasses this and writes `read` and `content`; for one that fits in memory,
    `offramp.data.arrays` is shorter.

    Args:
        name: Data set and part, such as `cifar100/search`.
        labels_S: Class of each image, in `[0, number of classes)`.
        indices_S: Position of each image in the official training or test set.
        image_shape: `(C, H, W)` of what `read` gives.
        batch_size: Images per step, over all processes together.
        training: Whether the images are shuffled and augmented.
    """

    config: DataConfig | None = None
    """What `load` needs to build it again; None where it cannot."""
    home: Path | None = None
    """The folder that is read as this data set, files and subfolders; nothing else may be written into it."""
    size_reason: str | None = None
    """Why its images have the size that they have, where that was chosen by them."""
    device = torch.device("cpu")
    """Where `read` may leave the images: a split that does not look at it leaves them on the CPU."""

    def __init__(
        self,
        name: str,
        labels_S: IntArray,
        indices_S: IntArray,
        *,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        batch_size: int,
        training: bool,
    ) -> None:
        check_whole("batch-size", batch_size, 1)
        self.name = name
        self.labels_S = torch.from_numpy(labels_S.astype(np.int64))
        self.indices_S = indices_S
        self.class_names = tuple(class_names)
        self.image_shape = image_shape
        self.batch_size = batch_size
        self.training = training
        self._fingerprint: str | None = None

    @abstractmethod
    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        """For each share in turn (positions in the official set) its normalised images, float32 `[B, C, H, W]`.

        `draw` has the random numbers of the augmentation; without it the images get the test transforms. A share may be
        empty. The generator is closed when it is no longer needed, perhaps early.
        """

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """Bytes that identify the images, in order, for `fingerprint`."""

    def inputs(self) -> Inputs | None:
        """How the file of any image, of this data set or not, becomes what a network trained on it sees.

        A test image that is written to a file as it is becomes what `read` gives without `draw`. None where there is no
        such way, as for data sets of a kind of their own unless they say it.
        """
        return None

    def unreadable(self, advance: Callable[[int], None]) -> list[str]:
        """Images that cannot be read, a sentence each: before a training, for later it is too late to remove them.

        Of several processes each looks at a share. Nothing for images that are in memory. `advance` is called with the
        number of images that were looked at.
        """
        advance(len(self))
        return []

    def __len__(self) -> int:
        return len(self.indices_S)

    @property
    def num_classes(self) -> int:
        """N."""
        return len(self.class_names)

    @property
    def num_batches(self) -> int:
        """Steps of one pass; the last incomplete batch is kept (protocols of the originals)."""
        return -(-len(self) // self.batch_size)

    def batches(self, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """This process's share of each global batch of one pass, from step `start` on.

        Which image, in which order, and how it is augmented depends on (seed, epoch, index) alone: neither on `start`
        nor on the number of workers or processes. A split that is not for training ignores seed and epoch.
        """
        check_whole("start", start, 0)
        if start > self.num_batches:
            raise UsageError(f"start={start} is past the end: {self.name} has {self.num_batches} batches.")
        return self._batches(seed, epoch, start)

    def _batches(self, seed: int, epoch: int, start: int) -> Iterator[Batch]:
        order_S = permutation(len(self), Purpose.ORDER, seed, epoch) if self.training else np.arange(len(self))
        batches = [order_S[first : first + self.batch_size] for first in range(0, len(self), self.batch_size)][start:]
        shares = [batch[share_of(len(batch))] for batch in batches]
        draw = Draw(seed, epoch) if self.training else None
        with contextlib.closing(self.read([self.indices_S[share] for share in shares], draw)) as images:
            for batch, share, images_BCHW in zip(batches, shares, images, strict=True):
                indices_B = torch.from_numpy(self.indices_S[share])
                yield Batch(images_BCHW, self.labels_S[torch.from_numpy(share)], indices_B, len(batch))

    def on(self, device: torch.device) -> "Split":
        """The same split, whose images are made on `device` if it can do that: the same bits."""
        other = copy.copy(self)
        other.device = device
        return other

    def plain(self) -> "Split":
        """The same images in order with test transforms."""
        other = copy.copy(self)
        other.training = False
        return other

    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of images, labels, class names and shape; the same for `plain()`."""
        if self._fingerprint is None:
            sha = hashlib.sha256(json.dumps([self.class_names, self.image_shape]).encode())
            sha.update(self.labels_S.numpy().astype("<i8").tobytes())
            for chunk in self.content():
                sha.update(chunk)
            self._fingerprint = sha.hexdigest()
        return self._fingerprint


class HeldOut:
    """The held-out training images, with test transforms: `search` and `certify`. Empty where nothing is held out.

    Args:
        search: The first half: monitoring, temperature, thresholds.
        certify: The second half: certificates, and nothing else.
        division: How the training set was divided, as JSON values, for `Parts.description`.
    """

    def __init__(
        self, search: Split | None = None, certify: Split | None = None, division: Mapping[str, Any] | None = None
    ) -> None:
        if (search is None) != (certify is None):
            raise UsageError("Held-out images are `search` and `certify` together, or neither.")
        self._search, self._certify = search, certify
        self.division = dict(division or {})

    @property
    def search(self) -> Split:
        """For monitoring, temperature and thresholds."""
        return self._get(self._search, "search")

    @property
    def certify(self) -> Split:
        """For certificates."""
        return self._get(self._certify, "certify")

    @property
    def num_certify(self) -> int:
        """Images in `certify`; 0 where there is no such part."""
        return 0 if self._certify is None else len(self._certify)

    def _get(self, part: Split | None, name: str) -> Split:
        if part is None:
            raise UsageError(
                f"There is no `{name}`: with holdout=0 every training image was trained on and nothing was held out. "
                f"Build the data with a holdout, for example holdout=5000."
            )
        return part

    def __len__(self) -> int:
        return sum(len(part) for part in (self._search, self._certify) if part is not None)

    def splits(self) -> tuple[Split, ...]:
        """Both parts, or none."""
        return tuple(part for part in (self._search, self._certify) if part is not None)

    def description(self) -> dict[str, Any]:
        """What a run folder saves about the split, as JSON values.

        `search` and `certify` list positions in the official training set in the order of the permutation, of which
        they are the last entries. They, and the number of images, give every part back without this program. The
        SHA-256 of the whole permutation (int64, little-endian) stands beside them. Nothing of this needs to be read
        again: the split is a function of the data set, `holdout`, `limit` and `split_seed`. `fingerprints` tell whether
        the images are still the same, and, of a run's ancestors, which these held out.
        """
        parts = dict(zip(("search", "certify"), self.splits(), strict=False))
        described = {**self.division, **{name: part.indices_S.tolist() for name, part in parts.items()}}
        if parts:
            described["fingerprints"] = {name: part.fingerprint() for name, part in parts.items()}
        return described


class Parts(NamedTuple):
    """What every builder returns."""

    train: Split
    val: HeldOut
    test: Split

    def splits(self) -> tuple[Split, ...]:
        """All parts there are: train, search and certify if images are held out, test."""
        return (self.train, *self.val.splits(), self.test)

    def description(self) -> dict[str, Any]:
        """`HeldOut.description`, and each part's number of images and fingerprint."""
        parts = {part.name: {"images": len(part), "fingerprint": part.fingerprint()} for part in self.splits()}
        return {**self.val.description(), "parts": parts}


def builder(function: Callable[P, Parts]) -> Callable[P, Parts]:
    """Make a builder attach the `DataConfig` by which `load` builds the same again.

    The builder is registered under its own name, with hyphens; a `path` argument, made absolute, becomes part of the
    name (`folder:PATH`). What differs from its default and is no field of `DataConfig` stands in `source.args`.

    What most of them take: `batch_size`, images per step, over all processes together; `holdout`, training images held
    out, by default at most a tenth; `split_seed`, of the permutation whose last entries these are; `limit`, to train on
    only so many images, the held-out ones among them.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build_and_sign(*args: P.args, **kwargs: P.kwargs) -> Parts:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        name = function.__name__.replace("_", "-")
        if "path" in values:
            name = f"{name}:{Path(values.pop('path')).expanduser().resolve()}"
        settings = {key: values.pop(key) for key in SETTINGS if key in values}
        if settings.get("root") is not None:
            settings["root"] = str(settings["root"])
        arguments = {key: value for key, value in values.items() if value != signature.parameters[key].default}
        config = DataConfig(source=Spec(name, arguments), **settings)  # first: it checks the settings
        parts = function(*args, **kwargs)
        for split in parts.splits():
            split.config = config
        return parts

    return build_and_sign
