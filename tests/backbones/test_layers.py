"""Units, branches, stems, heads, and how sides shrink."""

import pytest
import torch

from offramp.backbones.layers import (
    HEAD_SIDES,
    Stem,
    check_image_size,
    coarsest_sides,
    deepest_scales,
    heads,
)
from offramp.errors import UsageError


def test_heads_read_the_sides_they_say_and_no_others() -> None:
    (head,) = heads([2], num_classes=3, damping=True, width=None)
    assert (head.first.conv.out_channels, head.linear.out_features) == (2, 4)
    for side in range(1, 20):
        x = torch.zeros(2, 2, side, HEAD_SIDES[0])
        if HEAD_SIDES[0] <= side <= HEAD_SIDES[1]:
            assert head.eval()(x).shape == (2, 4)
        else:
            with pytest.raises(RuntimeError):
                head.eval()(x)


@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
def test_sides_are_predicted_as_the_stem_makes_them(kind: str) -> None:
    for num_scales in (1, 2, 3):
        stem = Stem(kind, 1, [1] * num_scales, [2] * (num_scales - 1))
        for height, width in ((17, 32), (33, 50), (61, 64)):
            coarsest = stem(torch.zeros(1, 1, height, width))[-1]
            assert coarsest_sides((height, width), kind, num_scales) == tuple(coarsest.shape[-2:])


@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
def test_a_square_that_is_large_enough_always_fits_some_number_of_scales(kind: str) -> None:
    least = 5 if kind == "cifar" else 17
    assert deepest_scales((least - 1, least - 1), kind) == 0
    for side in range(least, 400):
        num_scales = deepest_scales((side, side), kind)
        assert check_image_size("Net", side, kind, num_scales) == (side, side)
        with pytest.raises(UsageError):
            check_image_size("Net", side, kind, num_scales + 1)
