from pathlib import Path

import numpy as np
import pytest
import torch

from offramp import data
from offramp.config import DataConfig, Spec
from offramp.data import fashion, pairs
from offramp.data.memory import MemorySplit, statistics
from offramp.data.randomness import Draw

BLOCKS = {"train": 7, "t10k": 4}  # of a thousand garments; the seventh is left over


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Few garments, whose two first pixels are their number and all others zero; their classes, by part."""
    classes = {
        part: np.random.default_rng(blocks).permutation(np.arange(1000 * blocks) % 10)
        for part, blocks in BLOCKS.items()
    }

    def read(part: str, root: Path) -> tuple[torch.Tensor, np.ndarray]:
        number = np.arange(len(classes[part]))
        pixels = np.zeros((len(number), 1, 28, 28), np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number // 256, number % 256
        return torch.from_numpy(pixels), classes[part]

    monkeypatch.setattr(fashion, "read", read)
    return classes


def garments(split: data.Split) -> np.ndarray:
    """Numbers of the garments `[images, 3]` in the images of a split."""
    assert isinstance(split, MemorySplit)
    pixels = split.pixels_SCHW[torch.from_numpy(split.indices_S)].numpy().astype(int)
    return pixels[:, :, pairs.MARGIN, pairs.MARGIN] * 256 + pixels[:, :, pairs.MARGIN, pairs.MARGIN + 1]


def test_the_class_is_the_ordered_pair_of_the_red_and_the_green_garment(numbered: dict[str, np.ndarray]) -> None:
    parts = data.fashion_pairs(holdout=100)
    for split in parts.splits():
        classes = numbered["t10k" if split is parts.test else "train"]
        red, green, _ = classes[garments(split)].T
        assert np.array_equal(split.labels_S, 10 * red + green)
    names = parts.train.class_names
    assert (len(names), names[12]) == (100, f"{fashion.CLASS_NAMES[1]} | {fashion.CLASS_NAMES[2]}")
    assert parts.train.image_shape == (3, 32, 32)


def test_no_garment_is_in_two_parts_or_in_two_training_images(numbered: dict[str, np.ndarray]) -> None:
    parts = data.fashion_pairs(holdout=100)
    used = [garments(split).ravel() for split in parts.splits()[:-1]]
    assert [len(of) for of in used] == [3 * 1900, 3 * 50, 3 * 50]
    assert len(set(np.concatenate(used))) == 6000


def test_each_test_garment_is_in_each_channel_once_and_never_twice_in_an_image(numbered: dict[str, np.ndarray]) -> None:
    found = garments(data.fashion_pairs(holdout=0).test)
    assert all(sorted(found[:, channel]) == list(range(4000)) for channel in range(3))
    assert all(len(set(image)) == 3 for image in found)


def test_the_blue_garment_says_nothing_about_the_class(numbered: dict[str, np.ndarray]) -> None:
    parts = data.fashion_pairs(holdout=0)
    for split, times in ((parts.train, 2), (parts.test, 4)):
        blue = numbered["train" if split is parts.train else "t10k"][garments(split)[:, 2]]
        combinations = np.bincount(split.labels_S.numpy() * 10 + blue, minlength=1000)
        assert set(combinations) == {times}


def test_each_garment_is_augmented_by_itself(numbered: dict[str, np.ndarray]) -> None:
    """Moved together, the three channels would stay at one place; by themselves they are seldom."""
    train = data.fashion_pairs(holdout=0).train
    assert isinstance(train, MemorySplit)
    train.pixels_SCHW[:] = 0
    train.pixels_SCHW[:, :, 16, 16] = 255
    (images,) = train.read([np.arange(100)], Draw(0, 0))
    places = images.reshape(100, 3, -1).argmax(-1)
    assert len(places.unique()) > 50
    together = (places == places[:, :1]).all(1).float().mean()
    assert together < 0.1
    (again,) = train.read([np.arange(50, 100)], Draw(0, 0))
    assert torch.equal(again, images[50:])  # by the image, not by its place in a batch


def test_it_takes_the_network_of_cifar_100(numbered: dict[str, np.ndarray]) -> None:
    from offramp import backbones

    parts = data.load(DataConfig(source=Spec("fashion-pairs", {"limit": 500}), holdout=0, batch_size=2))
    network = backbones.build(
        Spec("msdnet7-cifar100"), num_classes=parts.train.num_classes, image_shape=parts.train.image_shape
    )
    assert network(next(parts.train.batches()).images_BCHW).shape == (7, 2, 100)


@pytest.mark.skipif(not fashion.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_one() -> None:
    train, val, test = data.fashion_pairs(fashion.DEBIAN)
    assert (len(train), len(val.search), len(val.certify), len(test)) == (18000, 1000, 1000, 10000)
    # Runs know their images by it: it may never change.
    assert test.fingerprint() == "9aa69852de80542686fcd8b7180f385107f8e0986d704811a28f14d12a139243"
    assert torch.equal(test.labels_S.bincount(), torch.full((100,), 100))
    means, stds = statistics(train.pixels_SCHW, np.arange(20000))  # type: ignore[attr-defined]
    np.testing.assert_allclose((means, stds), (pairs.LOOK.mean, pairs.LOOK.std), atol=5e-4)
