"""Splits whose images stay in files: decoded, cropped and resized by worker processes, step by step.

B images of a batch, T slots for batches, S images of a whole official set, C channels, H and W pixels.

A worker has no state: the loader sends it the files and the random numbers' counters of one step at a time, so what it
makes depends on them alone. It writes it where the loader says, into memory that both see and that is used again and
again: sending a step's pixels costs new pages at both ends, about a fifth of the time of decoding them.
"""

import collections
import contextlib
import functools
import hashlib
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from offramp.data.augment import CROP_UNIFORMS, Uniforms, central_cut, cut, normalise, random_box, resize
from offramp.data.base import Split
from offramp.data.inputs import MAX_MEGAPIXELS, Inputs, decode, not_too_thin
from offramp.data.randomness import Draw, IntArray
from offramp.devices import sent
from offramp.errors import OfframpError, SeveralErrors, UsageError, first_line
from offramp.processes import share_of
from offramp.storage import kept_on_this_machine, write_atomically

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's (protocols, 2.1)

_LISTED = 20  # files in a message
_AHEAD = 2  # steps that each worker is ahead

Job = tuple[list[Path], IntArray, int]  # files, their positions in the official set, the slot for their pixels


@dataclass(frozen=True)
class Listing:
    """The labelled image files of a whole official set.

    Attributes:
        folder: What `files` are relative to.
        files: Paths, in an order that is the same on every machine.
        unread: A sentence for each image file beside them that is of no kind that is read.
        left_out: A sentence for each that could not be used and was left out; None where that was not asked for.
    """

    folder: Path
    files: Sequence[str]
    labels_S: IntArray
    class_names: tuple[str, ...]
    unread: tuple[str, ...] = ()
    left_out: tuple[str, ...] | None = None

    @property
    def paths(self) -> list[Path]:
        """Of all files."""
        return [self.folder / name for name in self.files]

    def readable(self, max_megapixels: float) -> "Listing":
        """Those of the files that can be used; the others are left out."""
        bad = unreadable(self.paths, max_megapixels, may_be_thin=False)
        kept = [i for i, path in enumerate(self.paths) if path not in bad]
        files, labels_S = [self.files[i] for i in kept], self.labels_S[kept]
        for label in np.unique(self.labels_S):
            if label not in labels_S:
                raise OfframpError(f"{self.folder / self.class_names[label]} holds no image that can be read.")
        return replace(self, files=files, labels_S=labels_S, unread=(), left_out=(*self.unread, *bad.values()))


class FileSplit(Split):
    """A split of labelled image files, a part of the official set that is listed; arguments as of `Split`, `folder`."""

    def __init__(
        self,
        listing: Listing,
        name: str,
        indices_S: IntArray,
        training: bool,
        *,
        image_size: int,
        flip: bool,
        batch_size: int,
        workers: int,
        home: Path | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ) -> None:
        super().__init__(
            name,
            listing.labels_S[indices_S],
            indices_S,
            class_names=listing.class_names,
            image_shape=(3, image_size, image_size),
            batch_size=batch_size,
            training=training,
        )
        self.listing = listing
        self.home = home or listing.folder
        self._inputs = Inputs(self.class_names, self.image_shape, mean, std, "central-cut")
        self.image_size, self.flip, self.workers, self.max_megapixels = image_size, flip, workers, max_megapixels

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        """See `Split.read`; decodes ahead by two steps a worker."""
        import torchvision.io  # noqa: F401  Here, once: forked workers inherit it, others import it themselves.

        folder, files = self.listing.folder, self.listing.files
        shares = list(shares)
        slots_TBCHW = self._slots(max(map(len, shares), default=0))
        free = collections.deque(range(len(slots_TBCHW)))
        jobs = (([folder / files[i] for i in indices_B], indices_B, free.popleft()) for indices_B in shares)
        decoder = _Decoder(slots_TBCHW, self.flip, draw, self.max_megapixels)
        statistics = (self._inputs.mean, self._inputs.std)
        mean_C, std_C = (sent(torch.tensor(values), self.device) for values in statistics)
        for done in by_workers(decoder, jobs, self.workers):
            if isinstance(done, OfframpError):
                raise done
            slot, size = done
            # Here, or where they are needed: bytes are a quarter of the traffic.
            images_BCHW = normalise(sent(slots_TBCHW[slot, :size], self.device), mean_C, std_C)
            free.append(slot)
            yield images_BCHW

    def unreadable(self, advance: Callable[[int], None]) -> list[str]:
        """See `Split.unreadable`: decodes every file, about a millisecond an image and core."""
        share_S = self.indices_S[share_of(len(self))]
        if self.listing.left_out is not None:
            advance(len(share_S))
            return []
        paths = [self.listing.folder / self.listing.files[i] for i in share_S]
        return list(unreadable(paths, self.max_megapixels, advance, may_be_thin=self.training).values())

    def _slots(self, batch_size: int) -> Tensor:
        """Memory for the pixels of a step, T times: of each step that the workers are ahead, and of the one in use."""
        num_slots = _AHEAD * self.workers + 1
        slots_TBCHW = torch.empty(num_slots, batch_size, *self.image_shape, dtype=torch.uint8)
        try:
            return slots_TBCHW.share_memory_() if self.workers else slots_TBCHW  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            size = f"{slots_TBCHW.nbytes / 2**20:,.0f} MiB"
            raise OfframpError(
                f"{self.workers} workers need {size} of shared memory (/dev/shm), and there is less. Try fewer workers."
            ) from error

    def inputs(self) -> Inputs:
        """See `Split.inputs`: the test transform."""
        return self._inputs

    def content(self) -> Iterator[bytes]:
        """See `Split.content`: names and sizes of the files; reading them all would take as long as an epoch."""
        for index in self.indices_S:
            name = self.listing.files[index]
            yield f"{name}\0{(self.listing.folder / name).stat().st_size}\0".encode(errors="surrogateescape")


def unreadable(
    paths: Sequence[Path],
    max_megapixels: float,
    advance: Callable[[int], None] = lambda _: None,
    *,
    may_be_thin: bool,
) -> dict[Path, str]:
    """What is wrong with those of the files that cannot be read as images, a sentence each.

    Which these were is kept on this machine, for these files, sizes and times of change; only they are decoded again.
    """
    import torchvision.io  # noqa: F401  Here, and not in a thread.

    mark = _mark(paths, max_megapixels, may_be_thin)
    known = _places(mark, len(paths))
    looked_at = range(len(paths)) if known is None else known
    advance(len(paths) - len(looked_at))
    reasons = {}
    check = functools.partial(_unreadable, max_megapixels=max_megapixels, may_be_thin=may_be_thin)
    # Decoders let go of the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        try:
            for i, reason in zip(looked_at, pool.map(check, [paths[i] for i in looked_at]), strict=True):
                if reason is not None:
                    reasons[i] = reason
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    if mark is not None and known is None:
        with contextlib.suppress(OfframpError):  # a cache that cannot be written is none
            write_atomically(mark, " ".join(map(str, reasons)).encode())
    return {paths[i]: reason for i, reason in reasons.items()}


def check_found(problems: Sequence[str]) -> None:
    """Refuse what `unreadable` found, a line for each of the first twenty files."""
    if problems:
        lines = at_most_twenty(problems, "cannot be used")
        raise SeveralErrors(*lines, "Mend or remove them, or leave them out by --skip-unreadable.")


def at_most_twenty(problems: Sequence[str], what: str) -> list[str]:
    """How many image files these are, a line for each of the first twenty, and how many more there are."""
    count = "1 image file" if len(problems) == 1 else f"{len(problems):,} image files"
    more = [f"and {len(problems) - _LISTED:,} more"] if len(problems) > _LISTED else []
    return [f"{count} {what}:", *problems[:_LISTED], *more]


def _unreadable(path: Path, max_megapixels: float, may_be_thin: bool) -> str | None:
    try:
        image_CHW = decode(path, max_megapixels)
        if not may_be_thin:  # augmentation cuts before it resizes
            not_too_thin(image_CHW, path)
    except OfframpError as error:
        return str(error)
    return None


def _places(mark: Path | None, count: int) -> list[int] | None:
    """Which of so many files could not be read, as a mark says; None where nothing is known."""
    if mark is None or not mark.is_file():
        return None
    try:
        places = [int(word) for word in mark.read_text().split()]
    except (OSError, ValueError):
        return None
    return places if all(0 <= i < count for i in places) else None


def _mark(paths: Sequence[Path], max_megapixels: float, may_be_thin: bool) -> Path | None:
    """The file that says which of these could not be read; None where this user has no place for it."""
    digest = hashlib.sha256(f"{may_be_thin} {max_megapixels}\0".encode())
    for path in paths:
        try:
            known = path.stat()
        except OSError:  # it is gone, and decoding says so
            return None
        digest.update(f"{path.absolute()}\0{known.st_size}\0{known.st_mtime_ns}\0".encode(errors="surrogateescape"))
    try:
        return kept_on_this_machine("readable") / digest.hexdigest()
    except UsageError:
        return None


class _Decoder(Dataset[tuple[int, int] | OfframpError]):
    """Turns a job into uint8 images in its slot, and says the slot and how many they are.

    An error is returned, for the parent to raise in one line.
    """

    def __init__(self, slots_TBCHW: Tensor, flip: bool, draw: Draw | None, max_megapixels: float) -> None:
        self.slots_TBCHW, self.flip, self.draw, self.max_megapixels = slots_TBCHW, flip, draw, max_megapixels
        self.image_size = slots_TBCHW.shape[-1]

    def __getitem__(self, job: Any) -> tuple[int, int] | OfframpError:
        paths, indices_B, slot = job
        numbers = None if self.draw is None else self.draw.uniforms(indices_B, CROP_UNIFORMS + 1)
        try:
            for b, path in enumerate(paths):
                image_CHW = decode(path, self.max_megapixels)
                if numbers is None:
                    not_too_thin(image_CHW, path)
                self.slots_TBCHW[slot, b] = self._transform(image_CHW, None if numbers is None else numbers[b])
        except OfframpError as error:
            return error
        return slot, len(paths)

    def _transform(self, image_CHW: Tensor, uniforms: Uniforms | None) -> Tensor:
        if uniforms is None:
            return central_cut(image_CHW, self.image_size)
        height, width = image_CHW.shape[1:]
        image_CHW = resize(cut(image_CHW, random_box(height, width, uniforms)), (self.image_size, self.image_size))
        return image_CHW.flip(-1) if self.flip and uniforms[CROP_UNIFORMS] < 0.5 else image_CHW


def by_workers(dataset: Dataset[Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """`dataset[job]` of each job in order, by so many processes that work ahead; one that is gone is a clear error."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        sampler=jobs,
        batch_size=None,  # a job is a batch already
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # or it would draw from, and so advance, the run's generator
    )
    return _guarded(iter(loader))


def _as_it_is(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches every process of a terminal; the parent may still want the batches of its last step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _guarded(batches: Iterator[Any]) -> Iterator[Any]:
    """The same; a worker that is gone is a clear error."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise OfframpError(
                f"A process that decodes images is gone: {first_line(error)}. "
                f"Out of memory, or of shared memory (/dev/shm)? Try fewer workers."
            ) from error
        yield batch
