import base64

import numpy as np
import pytest
import torch
from torchvision.io import decode_png

from offramp import data
from offramp.commands.sheet import LARGEST, sheet
from offramp.results.dynamic import Picked


def pixels(address):
    prefix = "data:image/png;base64,"
    assert address.startswith(prefix)
    return decode_png(torch.frombuffer(bytearray(base64.b64decode(address.removeprefix(prefix))), dtype=torch.uint8))


def picked(*indices):
    return tuple(Picked(index, 0, 0, 0.5) for index in indices)


def parts(shape, dtype=np.uint8, count=40):
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (count, *shape)).astype(dtype)
    if dtype != np.uint8:
        images = images * np.linspace(-3, 5, count, dtype=dtype).reshape(-1, 1, 1, 1)
    test = images[::2]
    return test, data.arrays(images, np.arange(count) % 4, test, np.arange(len(test)) % 4, holdout=4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 5, 9), (1, 64, 64)])
def test_uint8_images_come_back_bit_for_bit(shape):
    test, made = parts(shape)
    made_sheet = sheet([picked(3, 0), (), picked(7)], made.test)
    assert [len(row) for row in made_sheet.rows] == [2, 0, 1]
    (third, first), _, (seventh,) = made_sheet.rows
    for address, index in ((third, 3), (first, 0), (seventh, 7)):
        assert torch.equal(pixels(address), torch.from_numpy(test[index]))
    assert made_sheet.shown_as == "The normalisation is undone."


def test_where_the_range_is_not_known_each_image_fills_the_whole_range():
    _, made = parts((3, 8, 8), np.float32)
    made_sheet = sheet([picked(0, 5, 19)], made.test)
    for address in made_sheet.rows[0]:
        shown = pixels(address)
        assert (int(shown.min()), int(shown.max())) == (0, 255)
    assert "from its own smallest value to its largest" in made_sheet.shown_as
    assert "brightness is not comparable" in made_sheet.shown_as


def test_an_image_of_one_value_is_black():
    images = np.full((8, 1, 4, 4), 0.3, dtype=np.float32)
    images[:4] = np.random.default_rng(0).random((4, 1, 4, 4))
    made = data.arrays(images, np.arange(8) % 2, images, np.arange(8) % 2, holdout=0)
    (((address,),)) = sheet([picked(7)], made.test).rows
    assert not pixels(address).any()


@pytest.mark.parametrize(("sides", "small"), [((128, 96), (64, 48)), ((65, 64), (64, 63)), ((200, 1), (64, 1))])
def test_large_images_are_scaled_down_and_keep_their_shape(sides, small):
    _, made = parts((3, *sides), count=8)
    made_sheet = sheet([picked(0)], made.test)
    assert pixels(made_sheet.rows[0][0]).shape == (3, *small)
    assert f"scaled down to {LARGEST} pixels" in made_sheet.shown_as


class TwoChannels(data.Split):
    """A data set of a kind of its own, which does not say how an image file becomes its input."""

    def __init__(self):
        self.images = torch.rand(4, 2, 8, 8)
        common = {"class_names": ["a", "b"], "image_shape": (2, 8, 8), "batch_size": 2, "training": False}
        super().__init__("mine/test", np.arange(4) % 2, np.arange(4), **common)

    def read(self, shares, draw):
        for share in shares:
            yield self.images[torch.from_numpy(share)]

    def content(self):
        yield self.images.numpy().tobytes()


def test_channels_that_are_no_colours_become_grey():
    mine = TwoChannels()
    made_sheet = sheet([picked(3)], mine)
    shown = pixels(made_sheet.rows[0][0])
    low, high = mine.images[3].min(), mine.images[3].max()
    assert torch.equal(shown, (255 * (mine.images[3] - low) / (high - low)).mean(0, keepdim=True).round().byte())
    assert "grey is the mean over the 2 channels" in made_sheet.shown_as


def test_no_image_is_read_but_those_picked(monkeypatch):
    _, made = parts((1, 8, 8))
    read, asked = made.test.read, []

    def noted(shares, draw):
        shares = list(shares)
        asked.extend(share.tolist() for share in shares)
        assert draw is None
        return read(shares, draw)

    monkeypatch.setattr(made.test, "read", noted)
    sheet([picked(9, 2), (), picked(0)], made.test)
    assert asked == [[9, 2], [0]]
