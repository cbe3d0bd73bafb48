"""The images of `--data garments` out of Fashion-MNIST: python benchmarks/garments.py.

Nothing is drawn at random: of each part that `offramp.data.fashion_mnist()` has (train, search and certify out of the
official training images, test out of the official test images) the first so many, without those that Fashion-MNIST has
more than once. Needs Fashion-MNIST, such as Debian's package dataset-fashion-mnist.
"""

import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import encode_png

from offramp.data import fashion_mnist
from offramp.data.garment_subset import COUNTS, FOLDER, IN_A_ROW, SIDE
from offramp.data.memory import MemorySplit
from offramp.storage import write_atomically


def chosen() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each part its images `[S, 1, 28, 28]` and their classes."""
    parts = fashion_mnist()
    splits = {name: split for name, split in zip(COUNTS, parts.splits(), strict=True) if isinstance(split, MemorySplit)}
    all_images = torch.cat([splits[name].pixels_SCHW for name in ("train", "test")])  # search and certify index train's
    times = Counter(image.numpy().tobytes() for image in all_images)
    images, labels = {}, {}
    for name, split in splits.items():
        once = [
            place
            for place, index in enumerate(split.indices_S[: COUNTS[name] + 200])
            if times[split.pixels_SCHW[index].numpy().tobytes()] == 1
        ][: COUNTS[name]]
        images[name] = split.pixels_SCHW[torch.from_numpy(split.indices_S[once])]
        labels[name] = split.labels_S[once]
        assert len(once) == COUNTS[name]
    return images, labels


def main(folder: Path = FOLDER) -> None:
    images, labels = chosen()
    rows = torch.cat(list(images.values())).view(-1, IN_A_ROW, 1, SIDE, SIDE)  # row, column, channel, y, x
    picture_CHW = rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    png = encode_png(picture_CHW.contiguous(), compression_level=9).numpy().tobytes()
    # The committed file has the same pixels in fewer bytes: PyPI's zopfli, `zopfli.png.optimize`, eight iterations.
    write_atomically(folder / "images.png", png)
    digits = {name: "".join(map(str, labels_S.tolist())) for name, labels_S in labels.items()}
    write_atomically(folder / "labels.json", (json.dumps(digits, indent=1) + "\n").encode())
    print(f"{folder}: {len(png):,} bytes of images")


if __name__ == "__main__":
    main()
