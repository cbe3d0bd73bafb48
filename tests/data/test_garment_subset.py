"""The images that ship: what they are, that no two parts share one, and that they are what the script makes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp import DataConfig, Spec, data
from offramp.data.fashion import DEBIAN, LOOK
from offramp.data.garment_subset import COUNTS, FOLDER
from offramp.errors import UsageError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "garments.py"
with_debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")


def images_of(split) -> list[bytes]:
    return [split.pixels_SCHW[index].numpy().tobytes() for index in split.indices_S]


def test_parts_are_of_the_sizes_said_with_every_class() -> None:
    parts = data.garments()
    assert [len(split) for split in parts.splits()] == list(COUNTS.values())
    assert all(split.image_shape == (1, 28, 28) for split in parts.splits())
    for split in parts.splits():
        assert min(np.bincount(split.labels_S, minlength=10)) > len(split) / 20
    assert (parts.train.look, parts.train.training, parts.test.training) == (LOOK, True, False)  # type: ignore[attr-defined]


def test_no_image_is_there_twice() -> None:
    images = [image for split in data.garments().splits() for image in images_of(split)]
    assert len(set(images)) == len(images) == sum(COUNTS.values())


def test_fewer_can_be_trained_on_and_the_rest_stays() -> None:
    parts, whole = data.load(DataConfig(source=Spec("garments", {"limit": 50}), batch_size=25)), data.garments()
    assert (len(parts.train), parts.train.num_batches) == (50, 2)
    assert images_of(parts.train) == images_of(whole.train)[:50]
    assert parts.val.certify.fingerprint() == whole.val.certify.fingerprint()
    described = parts.description()
    assert described["limit"] - described["holdout"] == 50
    for limit in (0, 3001):
        with pytest.raises(UsageError, match="limit"):
            data.garments(limit=limit)
    with pytest.raises(UsageError, match="no use for holdout=10"):
        data.load(DataConfig(source=Spec("garments"), holdout=10))


def test_it_is_small_and_its_licence_lies_beside_it() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000
    assert "MIT" in (FOLDER / "LICENSE").read_text()


@with_debian
def test_each_part_is_of_the_part_of_that_name_of_fashion_mnist() -> None:
    """So a network trained on either saw nothing that the other holds out."""
    whole = data.fashion_mnist(DEBIAN)
    for mine, theirs in zip(data.garments().splits(), whole.splits(), strict=True):
        assert set(images_of(mine)) <= set(images_of(theirs))


@with_debian
def test_the_files_are_what_the_script_makes(script) -> None:
    images, labels = script(SCRIPT).chosen()
    for name, split in zip(COUNTS, data.garments().splits(), strict=True):
        assert torch.equal(split.pixels_SCHW[torch.from_numpy(split.indices_S)], images[name])  # type: ignore[attr-defined]
        assert torch.equal(split.labels_S, labels[name])
