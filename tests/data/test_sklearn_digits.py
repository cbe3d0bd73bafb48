import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from offramp import data
from offramp.errors import UsageError


def test_the_real_digits() -> None:
    train, val, test = data.digits()
    assert [len(part) for part in (train, val, test)] == [1298, 144, 355]
    assert train.image_shape == (1, 16, 16)
    assert train.class_names == tuple("0123456789")
    official = load_digits().target
    for split in (train, val.search, val.certify, test):
        assert np.array_equal(split.labels_S.numpy(), official[split.indices_S])
    positions = np.concatenate([split.indices_S for split in (train, val.search, val.certify, test)])
    assert sorted(positions) == list(range(1797))
    shares = test.labels_S.bincount() / torch.from_numpy(np.bincount(official))
    assert ((shares > 0.194) & (shares <= 0.2)).all()


def test_training_images_are_normalised() -> None:
    train = data.digits(holdout=0).train.plain()
    images = torch.cat([batch.images_BCHW for batch in train.batches()])
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_they_are_normalised_by_constants_whatever_the_division() -> None:
    divided: list[dict[str, int]] = [{}, {"holdout": 600, "split_seed": 1}, {"limit": 99}]
    first, *others = (data.digits(**cut).train.look for cut in divided)  # type: ignore[attr-defined]
    assert all(other == first for other in others)
    np.testing.assert_allclose([first.mean[0], first.std[0]], [0.30546, 0.31882], atol=1e-5)


def test_eight_pixels_are_the_original() -> None:
    split = data.digits(image_size=8).test
    expected = np.round(load_digits().images * 255 / 16)
    assert np.array_equal(split.pixels_SCHW[:, 0].numpy(), expected)  # type: ignore[attr-defined]


def test_scaling_up_keeps_the_picture() -> None:
    pixels = data.digits(image_size=16).test.pixels_SCHW  # type: ignore[attr-defined]
    small = torch.nn.functional.avg_pool2d(pixels.float(), 2)[:, 0].flatten(1)
    original = torch.from_numpy(load_digits().images).float().flatten(1)
    correlation = torch.nn.functional.cosine_similarity(
        small - small.mean(1, keepdim=True), original - original.mean(1, keepdim=True)
    )
    assert correlation.min() > 0.9


def test_digits_are_shifted_by_at_most_one_pixel_and_never_mirrored() -> None:
    train = data.digits().train
    assert (train.look.padding, train.look.flip) == (1, False)  # type: ignore[attr-defined]


def test_a_size_below_the_original_is_refused() -> None:
    with pytest.raises(UsageError, match="image_size must be a whole number of at least 8, not 7"):
        data.digits(image_size=7)
