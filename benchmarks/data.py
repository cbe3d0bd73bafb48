"""How fast the data pipeline is, alone and beside training.

    python benchmarks/data.py [--rounds 11] [--threads 1] [--quick] [--out FILE]

Memory: CIFAR-sized images (random pixels; their values do not matter), crop, flip and normalisation.

Waiting: the share of its time that `offramp.fit` waits for the next batch, for MSDNet-7 on CIFAR-sized images and the
`auto` network on images of Fashion-MNIST's size, both in memory, and for MSDNet-5 on image folders at 224 pixels, batch
8, two workers. The first steps do not count: workers start once an epoch, which has 160,000 such steps on ImageNet.

Files: JPEG files of 500 x 375 pixels and about 110 kB (ImageNet's training images have 115 kB in the mean: the
archive's 147,897,477,120 bytes over 1,281,167), decoded, cropped and resized to 224 by two workers, over two plain
processes that do the same to the same files and send nothing to anyone; both start and end their processes every time.
Normalising is the loader's alone. Starting and ending processes counts, and is more of a pass here, of some seconds,
than of an epoch of 1.28 million images; with --quick passes are shorter. Beside them, but not with --quick: decoding
without crop and resize in two plain processes, and the loader with no worker and with one.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import numpy as np
import rows
import torch
import torchvision
from torchvision.io import write_jpeg

import offramp
from offramp import backbones, data, objectives
from offramp.config import Spec, TrainConfig
from offramp.data import Batch, Parts
from offramp.data.files import _Decoder
from offramp.data.inputs import MAX_MEGAPIXELS, decode
from offramp.data.randomness import Draw
from offramp.runtime.timing import conditions, take_turns

RATE, WAIT, OF_DECODER = 20_000, 0.02, 0.9
BATCH, FILES_BATCH, WORKERS = 64, 32, 2
NUM_FILES, COPIES, FEW_COPIES = 256, 16, 4  # copies: more steps a pass, with as many pictures
STEPS, FEW_STEPS, SKIPPED = 8, 2, 3  # of which the waiting is one value; of the start, uncounted
JPEG_QUALITY = 93  # with it these pictures take about as many bytes as ImageNet's
FOLDERS = ("msdnet5-imagenet", 8)  # network and batch
DECODER, LOADER = f"decoder, {WORKERS} processes", f"loader, {WORKERS} workers"
NETWORKS = {"msdnet7-cifar100": (100, (3, 32, 32)), "auto": (10, (1, 28, 28))}

Rates = dict[str, list[float]]


def random_images(num_images: int, shape: Sequence[int], num_classes: int, batch_size: int = BATCH) -> Parts:
    """Random pixels, cropped and mirrored as CIFAR's and Fashion-MNIST's are."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, *shape), dtype=np.uint8)
    labels = np.arange(num_images) % num_classes
    return data.arrays(
        pixels,
        labels,
        pixels[:100],
        labels[:100],
        class_names=[str(n) for n in range(num_classes)],
        padding=4,
        flip=True,
        batch_size=batch_size,
        holdout=0,
    )


def one_pass(split: data.Split) -> Callable[[], float]:
    """A function that goes through `split` and returns the seconds an image."""

    def turn() -> float:
        start = time.perf_counter()
        for _ in split.batches():
            pass
        return (time.perf_counter() - start) / len(split)

    return turn


def memory(rounds: int) -> Rates:
    """Images a second."""
    variants = {}
    for batch_size in (BATCH, 256):
        train = random_images(50_000, (3, 32, 32), 100, batch_size).train
        variants[f"training transforms, batch {batch_size}"] = one_pass(train)
        variants[f"test transforms, batch {batch_size}"] = one_pass(train.plain())
    return {name: [1 / s for s in seconds] for name, seconds in take_turns(variants, rounds, 1).items()}


def waiting(train: data.Split, network: str, values: int, steps: int, threads: int) -> list[float]:
    """The share of the time of so many steps that a training waited for data, some values of it."""
    torch.manual_seed(0)
    built = backbones.build(Spec(network), num_classes=train.num_classes, image_shape=train.image_shape, damping=True)
    original, asked, waited = type(train).batches, [], []

    def batches(self: data.Split, **which: int) -> Iterator[Batch]:
        given = original(self, **which)
        while True:
            asked.append(time.perf_counter())
            batch = next(given, None)
            waited.append(time.perf_counter() - asked[-1])
            if batch is None:
                return
            yield batch

    config = TrainConfig(epochs=1, lr=0.01, threads=threads, device="cpu")
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(type(train), "batches", batches):
        offramp.fit(built, objectives.dynamic(), train, None, config, out=folder)
    firsts = [SKIPPED + number * steps for number in range(values)]
    return [sum(waited[i : i + steps]) / (asked[i + steps] - asked[i]) for i in firsts]


def waits(folder: str, values: int, steps: int, threads: int) -> list[rows.Row]:
    """The rows of all networks."""
    needed = SKIPPED + values * steps + 1
    cases = {
        f"{name}, images of {shape[-1]} pixels in memory": (
            random_images(needed * BATCH, shape, num_classes).train,
            name,
        )
        for name, (num_classes, shape) in NETWORKS.items()
    }
    network, size = FOLDERS
    of_folders = data.imagenet(folder, batch_size=size, holdout=0, limit=needed * size, workers=WORKERS).train
    cases[f"{network}, image folders at 224 pixels, {WORKERS} workers"] = (of_folders, network)
    return [
        rows.value(
            f"share of training that waits for data, {about}",
            "",
            waiting(train, spec, values, steps, threads),
            f"under {WAIT:g}",
            below=WAIT,
        )
        for about, (train, spec) in cases.items()
    ]


def make_files(folder: Path, copies: int) -> list[Path]:
    """JPEG files in two class folders, as `train` and as `val`, in random order."""
    rng = np.random.default_rng(0)
    for i in range(NUM_FILES):
        blocks = rng.integers(0, 256, (3, 47, 63), dtype=np.uint8)
        picture = np.kron(blocks, np.ones((1, 8, 8), np.uint8))[:, :375, :500]
        noisy = np.clip(picture.astype(int) + rng.integers(-20, 21, picture.shape), 0, 255).astype(np.uint8)
        path = folder / "train" / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(torch.from_numpy(noisy), str(path), quality=JPEG_QUALITY)
        for copy in range(1, copies):
            path.with_name(f"{i}_{copy}.jpg").hardlink_to(path)
    (folder / "val").symlink_to(folder / "train")
    paths = sorted((folder / "train").rglob("*.jpg"))
    return [paths[i] for i in rng.permutation(len(paths))]  # copies in a row would be decoded from caches


def decode_all(paths: Sequence[Path], whole: bool) -> None:
    """What a plain process does: decode, and if `whole` crop and resize as for training."""
    torch.set_num_threads(1)
    slots = torch.empty(1, FILES_BATCH, 3, 224, 224, dtype=torch.uint8)
    decoder = _Decoder(slots, True, Draw(0, 0), MAX_MEGAPIXELS)
    for first in range(0, len(paths), FILES_BATCH):
        batch = list(paths[first : first + FILES_BATCH])
        if whole:
            decoder[batch, np.arange(first, first + len(batch)), 0]
        else:
            for path in batch:
                decode(path)


def files(folder: str, paths: Sequence[Path], rounds: int, is_quick: bool) -> Rates:
    """Seconds an image: of plain processes, and of the loader."""
    context = multiprocessing.get_context("fork")  # as the loader's on Linux

    def plain(whole: bool) -> Callable[[], float]:
        def turn() -> float:
            shares = [paths[number::WORKERS] for number in range(WORKERS)]
            start = time.perf_counter()
            started = [context.Process(target=decode_all, args=(share, whole)) for share in shares]
            for process in started:
                process.start()
            for process in started:
                process.join()
            assert all(process.exitcode == 0 for process in started)
            return (time.perf_counter() - start) / len(paths)

        return turn

    def loader(workers: int) -> Callable[[], float]:
        return one_pass(data.imagenet(folder, batch_size=FILES_BATCH, holdout=0, workers=workers).train)

    variants = {DECODER: plain(True), LOADER: loader(WORKERS)}
    if not is_quick:
        variants |= {
            "decoder without crop and resize, 2 processes": plain(False),
            "loader, 1 worker": loader(1),
            "loader, no worker": loader(0),
        }
    return take_turns(variants, rounds, warmup=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    before = conditions()
    rounds, steps, copies = (5, FEW_STEPS, FEW_COPIES) if options.quick else (options.rounds, STEPS, COPIES)
    in_memory = memory(rounds)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), copies)
        waited = waits(folder, rounds, steps, options.threads)
        from_files = files(folder, paths, rounds, options.quick)
    augmented = in_memory[f"training transforms, batch {BATCH}"]
    about = f"rate of the loader with {WORKERS} workers / of its decoder in {WORKERS} processes"
    goal = f"at least {OF_DECODER:g}"
    return {
        "what": "data: images a second, and how long training waits for them",
        **before,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "rounds": rounds,
        "files_of_a_pass": len(paths),
        "rows": [
            rows.value(
                f"CIFAR images augmented, batch {BATCH}", "images/s", augmented, f"at least {RATE:,}", above=RATE
            ),
            *waited,
            rows.paired(about, "", from_files[DECODER], from_files[LOADER], goal, at_least=OF_DECODER),
        ],
        "memory_images_per_second": {name: rows.spread(rates) for name, rates in in_memory.items()},
        "files_images_per_second": {
            name: rows.spread([1 / s for s in seconds]) for name, seconds in from_files.items()
        },
    }


def parser() -> argparse.ArgumentParser:
    return rows.parser(__doc__, rounds=11, threads=1)


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
