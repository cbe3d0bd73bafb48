import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from offramp.data.augment import (
    CROP_UNIFORMS,
    central_box,
    crop_and_flip,
    cut,
    normalise,
    random_box,
    resize,
)

MEAN, STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8)  # never black


def test_normalise_equals_the_usual_library() -> None:
    images = pixels(4, 3, 9, 7)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([usual(image.permute(1, 2, 0).numpy()) for image in images])
    assert torch.equal(normalise(images, torch.tensor(MEAN), torch.tensor(STD)), expected)


def test_every_grey_value_is_divided_not_multiplied_by_a_reciprocal() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = normalise(every, torch.zeros(1), torch.ones(1)).flatten().numpy()
    assert (found == np.arange(256, dtype=np.float32) / np.float32(255)).all()
    assert (found != np.arange(256, dtype=np.float32) * (np.float32(1) / np.float32(255))).any()


def test_normalise_leaves_floats_unscaled_and_unchanged() -> None:
    images = torch.full((2, 1, 3, 3), 5.0)
    assert torch.equal(normalise(images, torch.tensor([1.0]), torch.tensor([2.0])), torch.full((2, 1, 3, 3), 2.0))
    assert torch.equal(images, torch.full((2, 1, 3, 3), 5.0))


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_equals_a_slow_loop(padding: int, flip: bool) -> None:
    images = pixels(40, 3, 8, 6)
    numbers = np.random.default_rng(0).random((40, 3))
    expected = torch.zeros_like(images)
    for b in range(40):
        top = int(numbers[b, 0] * (2 * padding + 1)) - padding
        left = int(numbers[b, 1] * (2 * padding + 1)) - padding
        for row in range(8):
            for column in range(6):
                if 0 <= row + top < 8 and 0 <= column + left < 6:
                    place = 5 - column if flip and numbers[b, 2] < 0.5 else column
                    expected[b, :, row, place] = images[b, :, row + top, column + left]
    assert torch.equal(crop_and_flip(images, padding, flip, numbers), expected)


def test_the_border_is_black_in_pixel_space() -> None:
    corner = crop_and_flip(pixels(1, 3, 8, 8), 4, False, np.zeros((1, 3)))
    assert not corner[:, :, :4].any()
    assert not corner[:, :, :, :4].any()
    assert corner[:, :, 4:, 4:].all()
    black = normalise(corner, torch.tensor(MEAN), torch.tensor(STD))[0, :, 0, 0]
    torch.testing.assert_close(black, -torch.tensor(MEAN) / torch.tensor(STD))  # and not 0, the mean


def test_all_offsets_occur_and_half_the_images_are_mirrored() -> None:
    numbers = np.random.default_rng(0).random((4000, 3))
    marked = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    marked[:, :, 4, 4] = 1
    rows, columns = crop_and_flip(marked, 4, False, numbers)[:, 0].nonzero()[:, 1:].T
    assert len({(int(r), int(c)) for r, c in zip(rows, columns, strict=True)}) == 81
    lopsided = torch.zeros(4000, 1, 1, 2, dtype=torch.uint8)
    lopsided[..., 0] = 1
    share = crop_and_flip(lopsided, 0, True, numbers)[..., 1].double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_random_boxes_have_the_promised_area_and_aspect() -> None:
    height, width = 300, 400
    boxes = [random_box(height, width, u) for u in np.random.default_rng(0).random((2000, CROP_UNIFORMS))]
    areas = np.array([h * w for _, _, h, w in boxes]) / (height * width)
    aspects = np.array([w / h for _, _, h, w in boxes])
    assert 0.075 < areas.min() < 0.1
    assert 0.95 < areas.max() <= 1
    assert 0.74 < aspects.min() < 0.77
    assert 1.3 < aspects.max() < 1.35
    assert all(0 <= top <= height - h and 0 <= left <= width - w for top, left, h, w in boxes)


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 50)])
def test_a_box_that_never_fits_is_the_librarys_central_one(shape: tuple[int, int]) -> None:
    expected = transforms.RandomResizedCrop.get_params(torch.zeros(3, *shape), scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
    assert random_box(*shape, np.random.default_rng(0).random(CROP_UNIFORMS)) == tuple(expected)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (256, 256), (40, 301), (1000, 333)])
def test_the_test_transform_equals_the_usual_library(shape: tuple[int, int]) -> None:
    image = pixels(3, *shape)
    resized, box = central_box(*shape, 224)
    expected = v2.CenterCrop(224)(v2.Resize(256, antialias=True)(image))
    assert torch.equal(cut(resize(image, resized), box), expected)


def test_the_test_transform_keeps_its_proportion_at_other_sizes() -> None:
    assert central_box(80, 60, 32) == ((49, 37), (8, 2, 32, 32))


@pytest.mark.parametrize("size", [(224, 224), (17, 90)])
def test_resize_equals_the_usual_library(size: tuple[int, int]) -> None:
    image = pixels(3, 61, 83)
    assert torch.equal(resize(image, size), reference.resize(image, list(size), antialias=True))
