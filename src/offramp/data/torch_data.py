"""What people have, a torch `Dataset` or `DataLoader`, as a `Split`: the one place that turns one into the other.

B images of a batch, S images of a split, C channels, H and W pixels.
"""

import copy
import hashlib
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from offramp.data.base import HeldOut, Parts, Split
from offramp.data.files import by_workers
from offramp.data.randomness import Draw, IntArray, Purpose, hashes, permutation
from offramp.errors import UsageError

Given = Split | Dataset[Any] | DataLoader[Any]
"""Images as people have them: see `from_torch`."""
BATCH_SIZE = 64  # of a Dataset, which says none
_SCANNED = 256  # images looked at together


@dataclass(frozen=True)
class _Source:
    """A data set and how its items become batches; `read` gives images and classes at some positions."""

    dataset: Any
    collate: Any
    workers: int
    name: str
    first: int
    """Position of its first image, so that images of two data sets are told apart."""

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Iterator[tuple[Tensor, Tensor]]:
        return by_workers(_Seeded(self, draw), shares, self.workers)


class _Seeded(Dataset[tuple[Tensor, Tensor]]):
    """Batches whose images draw from generators seeded by (seed, epoch, index): what a Split promises of them."""

    def __init__(self, source: _Source, draw: Draw | None) -> None:
        self.source, self.draw = source, draw or Draw(0, 0)

    def __getitem__(self, indices_B: Any) -> tuple[Tensor, Tensor]:
        seeds_B = hashes(Purpose.AUGMENTATION, self.draw.seed, self.draw.epoch, indices_B)
        before = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            try:
                items = [self._item(int(index), int(seed)) for index, seed in zip(indices_B, seeds_B, strict=True)]
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])
        return _checked(self._batch(items), self.source.name)

    def _item(self, index: int, seed: int) -> Any:
        torch.default_generator.manual_seed(seed >> 1)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return self.source.dataset[index - self.source.first]

    def _batch(self, items: list[Any]) -> Any:
        try:
            return self.source.collate(items)
        except TypeError as error:
            raise _not_pairs(self.source.name, type(items[0]).__name__) from error


def _not_pairs(name: str, found: str) -> UsageError:
    return UsageError(
        f"{name} must give pairs of an image, a float tensor [channels, height, width], and its class, a whole number; "
        f"found {found}. torchvision's ToTensor() makes tensors of images; a DataLoader's collate_fn, pairs of "
        "anything else."
    )


def _checked(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (list, tuple)) or len(batch) != 2:
        raise _not_pairs(name, type(batch).__name__)
    images_BCHW, targets_B = batch
    if not (isinstance(images_BCHW, Tensor) and isinstance(targets_B, Tensor)):
        raise _not_pairs(name, f"{type(images_BCHW).__name__} and {type(targets_B).__name__}")
    whole = not targets_B.is_floating_point() and targets_B.dtype != torch.bool
    if images_BCHW.dim() != 4 or not images_BCHW.is_floating_point() or targets_B.dim() != 1 or not whole:
        shapes = (f"{str(one.dtype).removeprefix('torch.')} {list(one.shape[1:])}" for one in (images_BCHW, targets_B))
        raise _not_pairs(name, " and ".join(shapes))
    return images_BCHW.float(), targets_B.long()


class TorchSplit(Split):
    """Some images of a torch data set; made by `from_torch`. Its transforms are its own, in training and after it."""

    def __init__(self, source: _Source, digests_S: Sequence[bytes], *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.source, self.digests_S = source, digests_S

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        """See `Split.read`: without `draw` images get random transforms as well, the same each time."""
        shares = list(shares)
        batches = self.source.read([share for share in shares if len(share)], draw)
        for share in shares:
            yield next(batches)[0] if len(share) else torch.empty(0, *self.image_shape)

    def content(self) -> Iterator[bytes]:
        """See `Split.content`: hashes of the pixels."""
        yield from self.digests_S

    def part(self, name: str, places_S: IntArray) -> "TorchSplit":
        """The images at some places of this split, in that order."""
        other = copy.copy(self)
        other.name, other._fingerprint = name, None
        other.indices_S, other.labels_S = self.indices_S[places_S], self.labels_S[torch.from_numpy(places_S)]
        other.digests_S = [self.digests_S[place] for place in places_S]
        return other


def from_torch(given: Given, name: str, num_classes: int | None = None, *, training: bool = False) -> Split:
    """A torch `Dataset` or `DataLoader` as a part of a data set; a `Split` is given back as it is.

    Every image is read once, for its class and the hash by which the part is known again. Of a loader the data set,
    the size of batches, `collate_fn` and the number of workers are used; order and random numbers are offramp's, so
    that a run can be continued. The last, smaller batch is kept.

    Args:
        given: Gives pairs of an image, float `[C, H, W]`, and its class.
        name: Data set and part, such as `mine/test`.
        num_classes: N. Default: `classes` of the data set, or the largest class and one.
        training: Whether the images are shuffled, and their random transforms are others in every epoch.
    """
    return given if isinstance(given, Split) else _made(given, name, num_classes, training)


def _made(given: Any, name: str, num_classes: int | None, training: bool = False, first: int = 0) -> "TorchSplit":
    source, indices_S, batch_size = _taken(given, name, first)
    labels, digests, shape = [], [], None
    scanned = [indices_S[start : start + _SCANNED] for start in range(0, len(indices_S), _SCANNED)]
    for images_BCHW, targets_B in source.read(scanned, None):
        shape = shape or tuple(images_BCHW.shape[1:])
        if tuple(images_BCHW.shape[1:]) != shape:
            raise UsageError(f"{name} has images of shapes {list(shape)} and {list(images_BCHW.shape[1:])}.")
        labels.append(targets_B.numpy())
        digests += [hashlib.sha256(image_CHW.numpy().tobytes()).digest() for image_CHW in images_BCHW]
    if shape is None:
        raise UsageError(f"{name} has no images.")
    labels_S = np.concatenate(labels)
    return TorchSplit(
        source,
        digests,
        name,
        labels_S,
        indices_S,
        class_names=_class_names(source.dataset, labels_S, num_classes, name),
        image_shape=shape,
        batch_size=batch_size,
        training=training,
    )


def _taken(given: Any, name: str, first: int) -> tuple[_Source, IntArray, int]:
    """A source, the positions to read in it (of a `Subset` those in the whole), and the size of batches."""
    dataset, collate, workers, batch_size, sampler = given, default_collate, 0, BATCH_SIZE, None
    if isinstance(given, DataLoader):
        dataset, collate, workers, sampler = given.dataset, given.collate_fn, given.num_workers, given.sampler
        batch_size = given.batch_size or 0
    if isinstance(dataset, IterableDataset):
        raise UsageError(
            f"{name} is a stream ({type(dataset).__name__}): its images have no positions by which they are found "
            "again. Gather them: torch.utils.data.TensorDataset(images, classes)."
        )
    if not isinstance(dataset, Dataset) and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UsageError(
            f"{name} must be one part of a data set, such as val.search or test, a torch Dataset or a DataLoader, not "
            f"of type {type(given).__name__}."
        )
    positions_S = np.arange(len(dataset))
    if isinstance(sampler, SubsetRandomSampler):
        positions_S = np.sort(np.asarray(sampler.indices, dtype=np.int64))
    elif not batch_size or not _is_usual(sampler, len(dataset)):
        raise UsageError(
            f"{name} has a sampler of its own ({type(sampler).__name__}); offramp draws the order itself, so that a "
            "run can be continued. Pass the Dataset, or a torch.utils.data.Subset of it."
        )
    while isinstance(dataset, Subset):
        positions_S, dataset = np.asarray(dataset.indices, dtype=np.int64)[positions_S], dataset.dataset
    return _Source(dataset, collate, workers, name, first), positions_S + first, batch_size


def _is_usual(sampler: Any, num_images: int) -> bool:
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == num_images
    return sampler is None or isinstance(sampler, SequentialSampler)


def _class_names(dataset: Any, labels_S: IntArray, num_classes: int | None, name: str) -> tuple[str, ...]:
    known = tuple(map(str, getattr(dataset, "classes", ())))
    number = num_classes or len(known) or int(labels_S.max()) + 1
    if not 0 <= labels_S.min() <= labels_S.max() < number:
        raise UsageError(
            f"{name} has classes from {labels_S.min()} to {labels_S.max()}, where they are to be 0 to {number - 1}."
        )
    return known if len(known) == number else tuple(str(n) for n in range(number))


HeldOutGiven = HeldOut | tuple[Given, Given] | Dataset[Any] | DataLoader[Any] | None
"""Held-out images as people have them: see `held_out`."""


def held_out(given: HeldOutGiven, num_classes: int | None = None) -> HeldOut:
    """Held-out images: a pair of `search` and `certify`, or one data set, of which each is a half drawn once.

    A single `Split` is refused: it is not known what it is for.
    """
    if given is None or isinstance(given, HeldOut):
        return given or HeldOut()
    if isinstance(given, Split):
        raise UsageError(f"fit takes the held-out images as a whole, not {given.name} alone: pass val, or None.")
    if isinstance(given, (tuple, list)):
        search = from_torch(given[0], "torch/search", num_classes)
        if isinstance(given[1], Split):
            return HeldOut(search, given[1])
        certify = _made(given[1], "torch/certify", num_classes)
        if isinstance(search, TorchSplit) and search.source.dataset is not certify.source.dataset:
            certify = _made(given[1], "torch/certify", num_classes, first=len(search.source.dataset))
        return HeldOut(search, certify)
    whole = _made(given, "torch/held-out", num_classes)
    order_S = permutation(len(whole), Purpose.HELD_OUT, 0)
    if len(whole) < 2:
        raise UsageError("Held-out images are halved into `search` and `certify`, and there is only one: pass more.")
    return HeldOut(whole.part("torch/search", order_S[::2]), whole.part("torch/certify", order_S[1::2]))


PartsGiven = tuple[Given, HeldOutGiven, Given]
"""Train, held-out, test; `Parts` are such."""


def as_parts(given: PartsGiven, num_classes: int | None = None) -> Parts:
    """Train, held-out and test images, each of a kind that `from_torch` or `held_out` takes."""
    train, val, test = given
    return Parts(
        from_torch(train, "torch/train", num_classes, training=True),
        held_out(val, num_classes),
        from_torch(test, "torch/test", num_classes),
    )
