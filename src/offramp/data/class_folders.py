"""Labelled images as folders, one per class: ImageNet, and one's own.

S images.
"""

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from offramp.checks import check_flags, check_whole
from offramp.data.archives import root_folder
from offramp.data.base import Parts, builder
from offramp.data.files import MEAN, STD, FileSplit, Listing, check_found, unreadable
from offramp.data.inputs import MAX_MEGAPIXELS, check_megapixels, decode
from offramp.data.partition import Cut, divide, share_for_test, training_part
from offramp.data.randomness import IntArray
from offramp.errors import OfframpError, UsageError
from offramp.terminal import escaped

READABLE = (".jpeg", ".jpg", ".png", ".webp")
UNREADABLE = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".tif", ".tiff")  # images all the same: never passed over
IMAGENET_HOLDOUT = 50000
IMAGE_SIZES = (32, 64, 96, 128, 224)
_MOST_PIXELS = 8192  # of a side: beyond, a batch of one takes gigabytes
_PROBED = 32  # images looked at to choose a size


@builder
def imagenet(
    root: str | Path | None = None,
    *,
    image_size: int = 224,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
    skip_unreadable: bool = False,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Parts:
    """ImageNet as the usual folders `train` and `val`, one folder per class in each; `val` is the test set.

    Random resized crop (area 8 to 100 %, aspect 3/4 to 4/3, bilinear) and flip; for test the shorter side is resized to
    256 and the centre cropped to 224. The images stay in their files.

    The paper's recipe for it (100 epochs, batches of 256, lambda 0.01, alpha 0.3) is not the default:
    `offramp reproduce table2` trains by it, and its page shows the command of each run.

    Args:
        root: Folder with `train` and `val`, or with a folder `imagenet` that has them.
        holdout: By default 50,000, but at most a tenth of the images.
        others: As of `folder`.
    """
    cut = Cut(holdout, split_seed, limit, IMAGENET_HOLDOUT)
    folder = _imagenet_in(root_folder(root))
    train, test = list_images(folder / "train"), list_images(folder / "val")
    if train.class_names != test.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names))
        raise OfframpError(f"{folder}: train and val must have the same classes; {odd[0]} is in one of them only.")
    return _parts(
        "imagenet",
        train,
        test,
        home=folder,
        image_size=image_size,
        flip=True,
        batch_size=batch_size,
        workers=workers,
        max_megapixels=max_megapixels,
        skip_unreadable=skip_unreadable,
        mean=mean,
        std=std,
        cut=cut,
    )


def _imagenet_in(root: Path) -> Path:
    folder = root / "imagenet" if (root / "imagenet").is_dir() else root
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise OfframpError(
                f"ImageNet is not in {folder}: it has no folder {part!r}. Put train/ and val/ there, one folder per "
                f"class in each, or name the folder that has them with root. It cannot be downloaded for you."
            )
    return folder


@builder
def folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    flip: bool = True,
    batch_size: int = 64,
    holdout: int | None = None,
    split_seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    max_megapixels: float = MAX_MEGAPIXELS,
    skip_unreadable: bool = False,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Parts:
    """One's own labelled images (JPEG, PNG, WebP), one folder per class; `folder:PATH` on the command line.

    `path` has the class folders either in `train` and `test` (or `val`, which then is the test set), or directly;
    without a test set a fixed fifth of each class is test. Images become RGB; transforms are ImageNet's. Size,
    `mean` and `std` are the trained trunk's in `offramp train --backbone timm/NAME`, where timm says them.

    Args:
        path: The folder.
        image_size: Height and width given to the network. Default: the largest of 32, 64, 96, 128 and 224 that is not
            larger than the median shorter side of (32 of) the images trained on.
        flip: Whether training images are mirrored with probability 1/2.
        batch_size, holdout, split_seed, limit: See `builder`.
        workers: Processes that decode images, for each training process; 0: none besides it.
        max_megapixels: Images of more million pixels are refused before they are decoded.
        skip_unreadable: Leave out image files that cannot be used, instead of refusing the folder.
        mean, std: Of red, green and blue, scaled to [0, 1]: what images are normalised by. Default: ImageNet's.
    """
    cut = Cut(holdout, split_seed, limit)
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UsageError(f"There is no folder {path}.")
    train, test = _official_parts(path)
    listing = list_images(train)
    return _parts(
        path.resolve().name,
        listing,
        None if test is None else list_images(test, listing.class_names),
        home=path,
        image_size=image_size,
        flip=flip,
        batch_size=batch_size,
        workers=workers,
        max_megapixels=max_megapixels,
        skip_unreadable=skip_unreadable,
        mean=mean,
        std=std,
        cut=cut,
    )


def _official_parts(path: Path) -> tuple[Path, Path | None]:
    """The folders with the class folders for training and, if there is one, for test.

    A folder `train` that holds no folders is a class of that name.
    """
    named = [path / name for name in ("train", "test", "val") if _subfolders(path / name)]
    if path / "train" not in named:
        return path, None
    if len(named) == 3:
        warnings.warn(
            f"{escaped(path / 'val')} is not used: images are held out from train, and test is the test set.",
            stacklevel=4,
        )
    return named[0], named[1] if len(named) > 1 else None


def _subfolders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path, class_names: tuple[str, ...] | None = None) -> Listing:
    """The images in the class folders of `folder`. Hidden files, and files that are no images, are passed over.

    The classes there may be are the names of the folders, sorted, if none are given; then each must have an image.
    """
    present = _subfolders(folder)
    loose = [
        entry.name for entry in folder.iterdir() if entry.suffix.lower() in READABLE + UNREADABLE and entry.is_file()
    ]
    if loose:
        raise OfframpError(
            f"{folder / min(loose)} lies outside the class folders; move it into the folder of its class."
        )
    names = tuple(present) if class_names is None else class_names
    unknown = sorted(set(present) - set(names))
    if unknown:
        raise OfframpError(f"{folder / unknown[0]}: there is no class {unknown[0]!r} among the training images.")
    if class_names is None and len(names) < 2:
        problem = f"one class folder only, {names[0]!r}" if names else "no class folders"
        raise OfframpError(
            f"{folder} has {problem}; put the images of each class into a folder of its own, at least two."
        )
    files: list[str] = []
    labels: list[int] = []
    unread: list[str] = []
    for label, name in enumerate(names):
        known = len(unread)
        members = sorted(_images_in(folder, name, unread)) if name in present else []
        if not members and name in present and len(unread) == known:
            raise OfframpError(f"{folder / name} holds no image ({', '.join(READABLE)}); fill it or remove it.")
        files += members
        labels += [label] * len(members)
    return Listing(folder, files, np.array(labels, dtype=np.int64), names, tuple(sorted(unread)))


def _images_in(folder: Path, name: str, unread: list[str]) -> Iterator[str]:
    """Names of the images of a class; a sentence for each that is of no kind that is read goes to `unread`."""
    with os.scandir(folder / name) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if ending in UNREADABLE:
                unread.append(f"{entry.path}: {ending} is not read; convert it to PNG or JPEG, or remove it.")
            elif ending in READABLE and not entry.is_file():
                unread.append(f"{entry.path} is no regular file; remove it, or put the image in its place.")
            elif ending in READABLE:
                yield f"{name}/{entry.name}"
            elif entry.is_dir():
                raise OfframpError(
                    f"{entry.path} is a folder in a class folder; the images of a class lie in its folder directly."
                )


def _parts(
    name: str,
    train: Listing,
    test: Listing | None,
    *,
    home: Path,
    image_size: int | None,
    flip: bool,
    batch_size: int,
    workers: int,
    max_megapixels: float,
    skip_unreadable: bool,
    mean: Sequence[float],
    std: Sequence[float],
    cut: Cut,
) -> Parts:
    check_megapixels(max_megapixels)
    check_flags(flip=flip, skip_unreadable=skip_unreadable)
    for what, values in (("mean", mean), ("std", std)):
        if not (isinstance(values, (tuple, list)) and all(isinstance(value, (int, float)) for value in values)):
            raise UsageError(f"{what} must be three numbers such as (0.5, 0.5, 0.5), not {values!r}.")
    if skip_unreadable:
        train, test = train.readable(max_megapixels), test and test.readable(max_megapixels)
    listings = [train] if test is None else [train, test]
    if any(listing.unread for listing in listings):
        _refuse_all(listings, max_megapixels)
    if test is None:
        test, (train_S, test_S) = train, share_for_test(train.labels_S)
    else:
        train_S, test_S = np.arange(len(train.files)), np.arange(len(test.files))
    reason = None
    if image_size is None:
        try:
            image_size, reason = _fitting_size(train, training_part(train_S, cut), max_megapixels)
        except OfframpError:  # one is broken: name all that are
            _refuse_all(listings, max_megapixels)
            raise
    check_whole("image_size", image_size, 1, _MOST_PIXELS)
    split = functools.partial(
        FileSplit,
        image_size=image_size,
        flip=flip,
        batch_size=batch_size,
        workers=workers,
        home=home,
        max_megapixels=max_megapixels,
        mean=tuple(mean),
        std=tuple(std),
    )
    parts = divide(name, train_S, functools.partial(split, train), split(test, f"{name}/test", test_S, False), cut)
    parts.train.size_reason = reason
    if left_out := [reason for listing in listings for reason in listing.left_out or ()]:
        parts.val.division["left_out"] = left_out
    return parts


def _refuse_all(listings: Sequence[Listing], max_megapixels: float) -> None:
    """Refuse files that cannot be used, all of them at once."""
    problems = [reason for listing in listings for reason in listing.unread]
    for listing in listings:
        problems += unreadable(listing.paths, max_megapixels, may_be_thin=True).values()
    check_found(problems)


def _fitting_size(listing: Listing, train_S: IntArray, max_megapixels: float) -> tuple[int, str]:
    """The size for these images, and why."""
    probed_S = train_S[np.linspace(0, len(train_S) - 1, min(_PROBED, len(train_S))).astype(np.int64)]
    files = (listing.folder / listing.files[i] for i in probed_S)
    side = np.median([min(decode(file, max_megapixels).shape[1:]) for file in files])
    size = max((size for size in IMAGE_SIZES if size <= side), default=IMAGE_SIZES[0])
    reason = (
        f"Images are made {size} x {size} pixels: the median of their shorter sides is {side:.0f} (image_size=...)."
    )
    return size, reason
