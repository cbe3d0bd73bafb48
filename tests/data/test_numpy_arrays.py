from typing import Any

import numpy as np
import pytest
import torch

from offramp import data
from offramp.data.memory import MemorySplit
from offramp.errors import UsageError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (60, 3, 6, 5), dtype=np.uint8)
LABELS = np.arange(60) % 3


def test_a_fifth_of_each_class_is_test_and_a_tenth_of_the_rest_is_held_out() -> None:
    train, val, test = data.arrays(IMAGES, LABELS)
    assert (len(train), len(val), len(test)) == (44, 4, 12)
    assert test.labels_S.bincount().tolist() == [4, 4, 4]
    assert train.image_shape == (3, 6, 5)
    assert train.class_names == ("0", "1", "2")
    assert train.config is None


def test_images_and_labels_stay_together() -> None:
    parts = data.arrays(IMAGES, LABELS, batch_size=7)
    for split in parts.splits():
        look = split.look  # type: ignore[attr-defined]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (look.mean, look.std))
        for batch in split.plain().batches():
            expected = (torch.from_numpy(IMAGES)[batch.indices_B] / 255 - mean) / std
            assert torch.equal(batch.images_BCHW, expected)
            assert torch.equal(batch.targets_B, batch.indices_B % 3)


@pytest.mark.parametrize("cut", [{}, {"holdout": 20}, {"limit": 30}, {"holdout": 20, "split_seed": 1}], ids=str)
def test_images_are_normalised_by_those_trained_on_alone(cut: dict[str, int]) -> None:
    """A certificate rests on images that had no part in anything: also not in a mean."""
    train = data.arrays(IMAGES, LABELS, **cut).train
    chosen = IMAGES[train.indices_S] / 255
    np.testing.assert_allclose(train.look.mean, chosen.mean((0, 2, 3)))  # type: ignore[attr-defined]
    np.testing.assert_allclose(train.look.std, chosen.std((0, 2, 3)))  # type: ignore[attr-defined]


def test_a_test_set_of_ones_own_is_used_whole() -> None:
    train, _, test = data.arrays(IMAGES[:40], LABELS[:40], IMAGES[40:], LABELS[40:], holdout=0)
    assert (len(train), len(test)) == (40, 20)
    assert np.array_equal(test.pixels_SCHW.numpy(), IMAGES[40:])  # type: ignore[attr-defined]
    assert torch.equal(test.labels_S, torch.from_numpy(LABELS[40:]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_floats_are_normalised_as_they_are(dtype: Any) -> None:
    images = RANDOM.normal(5, 3, (30, 4, 4)).astype(dtype)
    train = data.arrays(images, np.arange(30) % 2, holdout=0).train.plain()
    out = torch.cat([batch.images_BCHW for batch in train.batches()])
    assert train.image_shape == (1, 4, 4)
    torch.testing.assert_close(out.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_read_only_and_strided_arrays_are_taken() -> None:
    last = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    last.flags.writeable = False
    pixels = data.arrays(last.transpose(0, 3, 1, 2), LABELS).train.pixels_SCHW  # type: ignore[attr-defined]
    assert np.array_equal(pixels.numpy(), IMAGES)


def test_augmentation_is_off_unless_asked_for() -> None:
    train = data.arrays(IMAGES, LABELS).train
    assert isinstance(train, MemorySplit)
    assert (train.look.padding, train.look.flip) == (0, False)
    train = data.arrays(IMAGES, LABELS, padding=2, flip=True).train
    assert isinstance(train, MemorySplit)
    assert (train.look.padding, train.look.flip) == (2, True)


def spoiled(value: float, dtype: Any = np.float32) -> np.ndarray:
    images = IMAGES.astype(dtype)
    images[17, 2, 3, 3] = images[40, 0, 0, 0] = value
    return images


@pytest.mark.parametrize("images", [spoiled(np.nan), spoiled(-np.inf), spoiled(1e300, np.float64)])
def test_pixels_that_are_not_finite_are_refused_with_the_first_image(images: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"^images\[17\] has a pixel that is NaN or infinite"):
        data.arrays(images, LABELS)
    with pytest.raises(UsageError, match=r"^test_images\[17\]"):
        data.arrays(IMAGES.astype(np.float32), LABELS, images, LABELS)


def labels(index: int, value: int) -> np.ndarray:
    changed = LABELS.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGES, labels(8, -1)), {}, "labels: the label at index 8 is -1, but the classes are 0 to 2"),
        ((IMAGES, labels(8, 3)), {"class_names": ["a", "b", "c"]}, "labels: the label at index 8 is 3"),
        ((IMAGES, LABELS, IMAGES, labels(5, 3)), {}, "test_labels: the label at index 5 is 3"),
        ((IMAGES, labels(8, 10**9)), {}, "labels go up to 1000000000 for 60 images"),
        ((IMAGES, LABELS[:59]), {}, "labels must be 60 whole numbers, one per image; found int64 of shape .59."),
        ((IMAGES, LABELS.astype(float)), {}, "found float64"),
        ((IMAGES, LABELS > 0), {}, "found bool"),
        ((IMAGES.transpose(0, 2, 3, 1), LABELS), {}, r"found \[60, 6, 5, 3\]. Channels last: pass images.transpose"),
        ((IMAGES[0, 0], LABELS), {}, "found .6, 5."),
        ((IMAGES[:0], LABELS[:0]), {}, "found .0, 3, 6, 5."),
        ((IMAGES.astype(np.int32), LABELS), {}, "must be uint8 or floating point, not int32"),
        ((IMAGES, LABELS, IMAGES), {}, "test_images and test_labels go together"),
        ((IMAGES, LABELS, IMAGES[..., :4], LABELS), {}, r"test_images are \[3, 6, 4\] of torch.uint8"),
        ((IMAGES, LABELS * 0), {}, "at least two classes; found 1"),
        ((IMAGES, LABELS), {"padding": -1}, "padding must be a whole number of at least 0"),
        ((IMAGES, LABELS), {"batch_size": 0}, "batch-size must be a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.arrays(*arguments, **options)
