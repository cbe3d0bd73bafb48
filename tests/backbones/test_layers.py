"""Units, branches, stems, heads, and how sides shrink."""

import pytest
import torch
from torch import nn

from offramp.backbones.layers import (
    HEAD_SIDES,
    Stem,
    Unit,
    branch,
    check_image_size,
    coarsest_sides,
    deepest_scales,
    heads,
)
from offramp.errors import UsageError


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_unit_is_convolution_batch_norm_relu() -> None:
    unit = Unit(3, 5, 3, stride=2)
    assert num_parameters(unit) == 3 * 5 * 9 + 2 * 5
    x = torch.randn(2, 3, 7, 7)
    expected = torch.relu(
        nn.functional.batch_norm(nn.functional.conv2d(x, unit.conv.weight, None, 2, 1), None, None, training=True)
    )
    torch.testing.assert_close(unit(x), expected)
    assert (unit.norm.eps, unit.norm.momentum, unit.conv.bias) == (1e-5, 0.1, None)


@pytest.mark.parametrize(("in_channels", "narrow"), [(8, 8), (12, 12), (40, 12)])
def test_a_bottleneck_is_never_wider_than_its_input(in_channels: int, narrow: int) -> None:
    squeezed = branch(in_channels, 6, factor=2)
    assert num_parameters(squeezed) == in_channels * narrow + 2 * narrow + narrow * 6 * 9 + 2 * 6
    assert num_parameters(branch(in_channels, 6, factor=None)) == in_channels * 6 * 9 + 2 * 6


def test_a_strided_branch_strides_in_its_last_convolution() -> None:
    strides = [unit.conv.stride for unit in branch(8, 6, factor=2, stride=2)]
    assert strides == [(1, 1), (2, 2)]


def test_the_stem_makes_one_map_per_scale() -> None:
    maps = Stem("cifar", 1, [4, 8, 8], [2, 1])(torch.zeros(2, 1, 11, 13))
    assert [tuple(x.shape) for x in maps] == [(2, 4, 11, 13), (2, 8, 6, 7), (2, 8, 6, 7)]
    imagenet = Stem("imagenet", 3, [4, 8], [2])
    assert [tuple(x.shape) for x in imagenet(torch.zeros(2, 3, 33, 32))] == [(2, 4, 9, 8), (2, 8, 5, 4)]
    assert imagenet.scales[0].conv.bias.shape == (4,)


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
