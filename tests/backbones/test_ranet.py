"""RANet against the published tables, and what running it stage by stage promises."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from offramp.backbones import ranet
from offramp.errors import UsageError

SMALL: dict[str, Any] = {"num_classes": 5, "channels": 4, "growth": 4, "head_channels": 8, "image_size": 20}
# Equal neighbours share a resolution, and then transitions and halvings stand after different blocks.
REPEATED: dict[str, Any] = {
    **SMALL,
    "scales": (1, 2, 3, 3),
    "growth_factors": (4, 2, 1, 1),
    "step_mode": "even",
    "step": 3,
}


@pytest.mark.parametrize("knobs", [SMALL, REPEATED])
def test_every_channel_of_the_carry_is_read_by_a_later_exit(knobs: dict[str, Any]) -> None:
    network = ranet(**knobs).double().eval()
    carry = (torch.rand(2, 3, 20, 20, dtype=torch.float64),)
    for k in range(network.num_exits - 1):
        carry = tuple(x.detach().requires_grad_() for x in network.run_stage(k, carry))
        later, logits = carry, torch.zeros(())
        for j in range(k + 1, network.num_exits):
            later = network.run_stage(j, later)
            logits = logits + network.run_exit(j, later).square().sum()
        gradients = torch.autograd.grad(logits, carry)
        assert all((g.abs().sum((0, 2, 3)) > 0).all() for g in gradients)


@pytest.mark.parametrize("knobs", [SMALL, REPEATED, {**SMALL, "scales": (1, 1, 2), "compress": 0.5}])
def test_stage_by_stage_is_the_whole_forward_also_with_rows_dropped(knobs: dict[str, Any]) -> None:
    network = ranet(**knobs).double().eval()
    num_images = network.num_exits + 2
    images = torch.rand(num_images, 3, 20, 20, dtype=torch.float64)
    whole = network(images)
    assert whole.shape == (network.num_exits, num_images, 5)
    kept, carry = torch.arange(num_images), (images,)
    for k in range(network.num_exits):
        carry = network.run_stage(k, carry)
        torch.testing.assert_close(network.run_exit(k, carry), whole[k, kept], rtol=0, atol=1e-12)
        stay = torch.arange(len(kept)) != k % len(kept)  # drop one row after every stage
        kept, carry = kept[stay], tuple(x[stay] for x in carry)


@pytest.mark.parametrize("damping", [False, True])
def test_weights_start_normal_but_for_the_stem(damping: bool) -> None:
    """The original's initialiser reaches the sub-networks and the heads, not the stem."""
    network = ranet(damping=damping)
    stem = set(network.stages[0].stem.modules())
    normal = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module in stem:
            largest = module.weight.abs().max().item() * math.sqrt(module.weight[0].numel())
            assert 1 - 12 / module.weight.numel() <= largest <= 1
        elif isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            normal.append(module.weight.detach().flatten() / std)
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
        elif isinstance(module, nn.Linear):
            assert torch.equal(module.bias, torch.zeros(100 + damping))
            assert 0.99 <= module.weight.abs().max().item() * math.sqrt(128) <= 1
    sample = torch.cat(normal)  # two and a half million standard normal numbers
    assert abs(sample.mean()) < 5 / math.sqrt(len(sample))
    assert sample.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / len(sample)))
    assert sample.pow(4).mean().item() == pytest.approx(3, abs=0.05)
    assert all(abs(x.var().item() - 1) < 6 * math.sqrt(2 / len(x)) for x in normal if len(x) > 1000)


@pytest.mark.parametrize("size", [17, 23, 28, 33, 48, (17, 48)])
def test_any_image_size_the_strides_allow(size: Any) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    network = ranet(**{**SMALL, "image_size": size}, in_channels=1).eval()
    assert network.image_shape == (1, height, width)
    assert network(torch.rand(2, 1, height, width)).shape == (6, 2, 5)


@pytest.mark.parametrize("size", [16, 49, (32, 16)])
def test_sizes_that_do_not_fit_are_refused_and_could_not_run(size: Any) -> None:
    with pytest.raises(UsageError, match=r"RANet with 3 scales .* Images of 17 to 48 pixels a side fit"):
        ranet(image_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    with pytest.raises(RuntimeError):
        ranet(**SMALL).eval()(torch.rand(1, 3, height, width))


def test_repeated_scales_count_once_for_the_image_size() -> None:
    assert ranet(**REPEATED).image_shape == (3, 20, 20)
    with pytest.raises(UsageError, match="33 to 96"):
        ranet(scales=(1, 2, 3, 4), growth_factors=(4, 2, 1, 1))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"blocks": 0}, "blocks must be a whole number of at least 1, not 0"),
        ({"scales": (1, 2)}, "scales has 2, growth_factors has 3"),
        ({"scales": (2, 3, 4)}, "scales must start at 1 and rise by 0 or 1"),
        ({"scales": (1, 3, 3)}, "scales must start at 1 and rise by 0 or 1"),
        ({"scales": (1, 2, 1)}, "scales must start at 1 and rise by 0 or 1"),
        ({"step_mode": "lin_grow"}, "step_mode must be one of lg, even"),
        ({"compress": 0.1}, "compress=0.1 takes 0 of the 6 channels"),
        ({"compress": 1}, "compress=1 takes 12 of the 12 channels"),
        ({"compress": -1}, "compress must be a number between 0 and 1"),
        ({"reduction": 0}, "reduction=0 leaves no channels of 147"),
    ],
)
def test_contradictions_are_refused_with_the_reason(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ranet(**knobs)


def test_one_sub_network_alone() -> None:
    network = ranet(**{**SMALL, "image_size": 8}, scales=(1,), growth_factors=(2,), blocks=1).eval()
    assert network(torch.zeros(2, 3, 8, 8)).shape == (1, 2, 5)
