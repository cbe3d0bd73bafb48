"""How fast the data pipeline is, alone, as one JSON object: `python benchmarks/data.py`.

`memory`: CIFAR-sized images (random pixels; their values do not matter), crop, flip and normalisation on one thread.
`files`: JPEG files of 500 x 375 pixels as ImageNet's, decoded, cropped and resized to 224, with 0, 1 and 2 workers.
Rates are images per second, a median over passes, and their spread (smallest and largest).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.io import write_jpeg

from offramp import data
from offramp.data import Split


def rate(split: Split, passes: int) -> dict[str, float]:
    def one(epoch: int) -> float:
        started = time.perf_counter()
        images = sum(batch.size for batch in split.batches(epoch=epoch))
        return images / (time.perf_counter() - started)

    one(0)
    rates = [one(epoch) for epoch in range(1, passes + 1)]
    return {"median": round(statistics.median(rates)), "min": round(min(rates)), "max": round(max(rates))}


def memory(passes: int) -> dict[str, dict[str, float]]:
    pixels = np.random.default_rng(0).integers(0, 256, (50000, 3, 32, 32), dtype=np.uint8)
    results = {}
    for batch_size in (64, 256):
        train = data.arrays(
            pixels,
            np.arange(50000) % 100,
            pixels[:100],
            np.arange(100),
            padding=4,
            flip=True,
            batch_size=batch_size,
            holdout=0,
        ).train
        results[f"train, batch {batch_size}"] = rate(train, passes)
        results[f"test transforms, batch {batch_size}"] = rate(train.plain(), passes)
    return results


def files(passes: int, num_images: int = 256, copies: int = 8) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(num_images):
            blocks = rng.integers(0, 256, (3, 47, 63), dtype=np.uint8)
            picture = np.kron(blocks, np.ones((1, 8, 8), np.uint8))[:, :375, :500]
            noisy = np.clip(picture.astype(int) + rng.integers(-20, 21, picture.shape), 0, 255).astype(np.uint8)
            path = Path(folder, "train", str(i % 2), f"{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jpeg(torch.from_numpy(noisy), str(path))
            for copy in range(1, copies):  # more steps a pass, so that starting the workers does not count
                path.with_name(f"{i}_{copy}.jpg").hardlink_to(path)
        Path(folder, "val").symlink_to(Path(folder, "train"))

        def train(workers: int) -> Split:
            return data.imagenet(folder, batch_size=32, holdout=0, workers=workers).train

        return {f"{workers} workers": rate(train(workers), passes) for workers in (0, 1, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=5)
    passes = parser.parse_args().passes
    torch.set_num_threads(1)
    parts: dict[str, Callable[[int], dict[str, dict[str, float]]]] = {"memory": memory, "files": files}
    conditions = {
        "unit": "images per second",
        "passes": passes,
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
    print(json.dumps({**conditions, **{name: run(passes) for name, run in parts.items()}}, indent=1))


if __name__ == "__main__":
    main()
