"""MSDNet against the published tables, and what running it stage by stage promises."""

import itertools
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import fx, nn

from offramp.backbones import msdnet
from offramp.backbones.msdnet import Layer, Transition
from offramp.errors import UsageError
from offramp.network import EarlyExitNet

IMAGENET: dict[str, Any] = {
    "exits": 5,
    "num_classes": 1000,
    "base": 4,
    "step": 4,
    "step_mode": "even",
    "channels": 32,
    "growth": 16,
    "growth_factors": (1, 2, 4, 4),
    "stem": "imagenet",
    "head_channels": None,
    "image_size": 224,
}
SMALL: dict[str, Any] = {"exits": 4, "num_classes": 5, "channels": 4, "growth": 2, "head_channels": 8, "image_size": 20}


def on_meta(**knobs: Any) -> EarlyExitNet:
    with torch.device("meta"):
        return msdnet(**knobs)


# Cumulative operations of exit k: convolutions, ReLU, pooling, Linear weights, Linear biases.
BREAKDOWN_CIFAR100 = [
    (6779904, 66560, 512, 12800, 100),
    (14183424, 139776, 1024, 25600, 200),
    (27002880, 248320, 1536, 38400, 300),
    (48003072, 392192, 2048, 51200, 400),
    (75836416, 529152, 2560, 64000, 500),
    (108114944, 655104, 3072, 76800, 600),
    (136475648, 711424, 3584, 89600, 700),
]
BREAKDOWN_IMAGENET = [
    (336830464, 1782656, 904704, 384000, 1000),
    (680886272, 2894208, 906240, 768000, 2000),
    (1002539008, 3586464, 907648, 1120000, 3000),
    (1248202240, 3933584, 908864, 1424000, 4000),
    (1353622016, 4007504, 911104, 1984000, 5000),
]


@pytest.mark.parametrize(("knobs", "expected"), [({}, BREAKDOWN_CIFAR100), (IMAGENET, BREAKDOWN_IMAGENET)])
def test_breakdown_of_the_cumulative_operations(knobs: dict[str, Any], expected: list[Any], tallies: Any) -> None:
    network = on_meta(**knobs)
    found = tallies(network)
    for k, row in enumerate(expected):
        upto = tuple(f"{kind}.{j}." for kind in ("stages", "exits") for j in range(k + 1))
        parts = [tally for name, tally in found.items() if name.startswith(upto)]
        assert (
            tuple(sum(getattr(t, kind) for t in parts) for kind in ("conv", "relu", "pool", "weights", "biases")) == row
        )


# Parts of the blocks in order: parameters, operations; a layer's transition follows it.
PARTS_CIFAR100 = [
    [(23696, 2830336), (13764, 1801728)],
    [(15420, 2059776), (17076, 2317824)],
    [(18732, 2575872), (20388, 2833920), (22044, 3091968)],
    [(23700, 3350016), (25356, 3608064), (27012, 3866112), (28668, 4124160)],
    [(29520, 3571200), (67732, 6916864), (22440, 2692608), (24168, 2913792), (25896, 3134976), (27624, 3356160)],
    [
        *[(29352, 3577344), (31080, 3798528), (32808, 4019712), (34536, 4240896), (36264, 4462080)],
        *[(30768, 2843136), (81200, 5184000)],
    ],
    [
        *[(40176, 2563584), (42480, 2711040), (44784, 2858496), (47088, 3005952), (49392, 3153408)],
        *[(51696, 3300864), (54000, 3448320)],
    ],
]
PARTS_IMAGENET = [
    [(245056, 96519808), (195936, 42671552), (224096, 50298304), (252256, 57925056), (280416, 65551808)],
    [(308576, 73178560), (332576, 67859904), (296192, 57965824), (263488, 56394688), (292160, 63218624)],
    [(320832, 70042560), (349504, 76866496), (343168, 56319424), (332928, 40713120), (369920, 56093632)],
    [(402688, 61311936), (435456, 66530240), (468224, 71748544), (213632, 20707008), (185440, 9071664)],
    [(225920, 11054400), (242304, 11857216), (258688, 12660032), (275072, 13462848)],
]


@pytest.mark.parametrize(("knobs", "expected"), [({}, PARTS_CIFAR100), (IMAGENET, PARTS_IMAGENET)])
def test_parameters_and_operations_of_each_layer(knobs: dict[str, Any], expected: list[Any], tallies: Any) -> None:
    network = on_meta(**knobs)
    found = tallies(network)
    for k, stage in enumerate(network.stages):
        sums = []
        for j in range(len(stage.parts)):
            parts = [tally for name, tally in found.items() if name.startswith(f"stages.{k}.parts.{j}.")]
            sums.append((sum(t.params for t in parts), sum(t.ops for t in parts)))
        assert sums == expected[k]


# channels@side of the carry after each stage; after the last one only what the exit reads is left
CARRY_CIFAR100 = [
    [(22, 32), (44, 16), (88, 8)],
    [(34, 32), (68, 16), (136, 8)],
    [(52, 32), (104, 16), (208, 8)],
    [(76, 32), (152, 16), (304, 8)],
    [(130, 16), (260, 8)],
    [(200, 8)],
    [(368, 8)],
]
CARRY_IMAGENET = [
    [(96, 56), (192, 28), (384, 14), (384, 7)],
    [(192, 28), (384, 14), (384, 7)],
    [(352, 14), (352, 7)],
    [(304, 7)],
    [(560, 7)],
]


@pytest.mark.parametrize(("knobs", "expected"), [({}, CARRY_CIFAR100), (IMAGENET, CARRY_IMAGENET)])
def test_the_carry_is_the_surviving_scales_finest_first(knobs: dict[str, Any], expected: list[Any]) -> None:
    network = on_meta(**knobs).eval()
    carry = (torch.zeros(1, *network.image_shape, device="meta"),)
    for k, maps in enumerate(expected):
        carry = network.run_stage(k, carry)
        assert [tuple(x.shape) for x in carry] == [(1, channels, side, side) for channels, side in maps]


def test_every_channel_of_the_carry_is_read_by_a_later_exit() -> None:
    network = msdnet(**SMALL).double().eval()
    carry = (torch.rand(2, 3, 20, 20, dtype=torch.float64),)
    for k in range(network.num_exits - 1):
        carry = tuple(x.detach().requires_grad_() for x in network.run_stage(k, carry))
        later, logits = carry, torch.zeros(())
        for j in range(k + 1, network.num_exits):
            later = network.run_stage(j, later)
            logits = logits + network.run_exit(j, later).square().sum()
        gradients = torch.autograd.grad(logits, carry)
        assert all((g.abs().sum((0, 2, 3)) > 0).all() for g in gradients)


def test_last_only_is_the_trunk_of_the_whole_network_with_its_last_head() -> None:
    whole, last = msdnet(**SMALL).double().eval(), msdnet(**SMALL, last_only=True).double().eval()
    renamed = {}
    parts = itertools.count()
    for k, stage in enumerate(whole.stages):
        for j in range(len(stage.parts)):
            before, after = f"stages.{k}.parts.{j}.", f"stages.0.parts.{next(parts)}."
            entries = whole.state_dict().items()
            renamed |= {after + name.removeprefix(before): x for name, x in entries if name.startswith(before)}
    renamed |= {f"exits.0.{name}": x for name, x in whole.exits[-1].state_dict().items()}
    last.load_state_dict(renamed)
    images = torch.rand(2, 3, 20, 20, dtype=torch.float64)
    assert last(images).shape == (1, 2, 5)
    assert torch.equal(last(images)[0], whole(images)[-1])


@pytest.mark.parametrize("knobs", [{}, {"prune": "min"}, {"bottleneck": False}, {"step_mode": "even", "step": 3}])
def test_stage_by_stage_is_the_whole_forward_also_with_rows_dropped(knobs: dict[str, Any]) -> None:
    network = msdnet(**SMALL, **knobs).double().eval()
    images = torch.rand(6, 3, 20, 20, dtype=torch.float64)
    whole = network(images)
    assert whole.shape == (4, 6, 5)
    kept, carry = torch.arange(6), (images,)
    for k in range(4):
        carry = network.run_stage(k, carry)
        torch.testing.assert_close(network.run_exit(k, carry), whole[k, kept], rtol=0, atol=1e-12)
        stay = torch.arange(len(kept)) != k  # drop one row after every stage
        kept, carry = kept[stay], tuple(x[stay] for x in carry)


def test_the_paper_network_keeps_its_rows_when_others_are_dropped() -> None:
    network = msdnet().double().eval()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    whole, carry = network(images), (images,)
    for k in range(7):
        carry = network.run_stage(k, carry)
        torch.testing.assert_close(network.run_exit(k, carry), whole[k, -len(carry[0]) :], rtol=0, atol=1e-12)
        carry = tuple(x[1:] if len(x) > 1 else x for x in carry)


@pytest.mark.parametrize("damping", [False, True])
def test_weights_start_at_the_library_defaults(damping: bool) -> None:
    """The initialiser that the original defines never reaches a layer there."""
    network = msdnet(damping=damping)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            largest = module.weight.abs().max().item() / bound
            assert largest <= 1
            # the largest of n uniform numbers is below 1 - 12 / n in one of e^12 cases
            assert largest >= 1 - 12 / module.weight.numel()
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
    biases = torch.cat([head.linear.bias for head in network.exits])
    assert biases.abs().max() <= 1 / math.sqrt(128)
    assert biases.abs().mean().item() == pytest.approx(0.5 / math.sqrt(128), rel=0.15)


def schedule(network: EarlyExitNet) -> list[tuple[int, int]]:
    """Scales that come into and go out of each layer."""
    layers = [part for stage in network.stages for part in stage.parts if isinstance(part, Layer)]
    return [(len(layer.scales) + (layer.scales[0].down is not None), len(layer.scales)) for layer in layers]


@pytest.mark.parametrize(("exits", "num_scales"), [(2, 3), (3, 2), (5, 3), (7, 3), (4, 4)])
def test_the_schedule_of_scales(exits: int, num_scales: int) -> None:
    knobs = {"exits": exits, "growth_factors": (1, 2, 4, 4)[:num_scales], "image_size": 8 * 2 ** (num_scales - 1)}
    n = exits * (exits + 1) // 2
    interval = math.ceil(n / num_scales)
    latest = [
        (num_scales - max(0, layer - 2) // interval, num_scales - (layer - 1) // interval) for layer in range(1, n + 1)
    ]
    assert schedule(on_meta(**knobs)) == latest
    early = [(min(num_scales, n - layer + 2), min(num_scales, n - layer + 1)) for layer in range(1, n + 1)]
    assert schedule(on_meta(**knobs, prune="min")) == early


def test_with_prune_min_transitions_stand_after_thirds_of_the_layers() -> None:
    network = on_meta(exits=4, base=3, step=3, step_mode="even", prune="min")
    parts = [part for stage in network.stages for part in stage.parts][1:]
    is_transition = [isinstance(part, Transition) for part in parts]
    assert [i for i, found in enumerate(is_transition) if found] == [4, 9]  # after layers 4 and 8 of 12


def test_reduction_0_means_no_transitions() -> None:
    network = on_meta(reduction=0)
    assert not any(isinstance(module, Transition) for module in network.modules())
    assert network.exits[-1].first.conv.in_channels == 4 * (16 + 28 * 6)


def test_without_bottleneck_each_branch_is_one_unit() -> None:
    network = on_meta(**SMALL, bottleneck=False)
    branches = [m for name, m in network.named_modules() if name.endswith((".same", ".down"))]
    assert branches
    assert all(len(branch) == 1 for branch in branches)


@pytest.mark.parametrize("size", [17, 19, 28, 31, 33, 48, (17, 48)])
def test_any_image_size_the_strides_allow(size: Any) -> None:
    height, width = size if isinstance(size, tuple) else (size, size)
    network = msdnet(exits=2, num_classes=3, image_size=size, in_channels=1).eval()
    assert network.image_shape == (1, height, width)
    assert network(torch.rand(2, 1, height, width)).shape == (2, 2, 3)


@pytest.mark.parametrize("size", [8, 16, 49, (32, 49)])
def test_sizes_that_do_not_fit_are_refused_and_could_not_run(size: Any) -> None:
    with pytest.raises(UsageError, match="Images of 17 to 48 pixels a side fit"):
        msdnet(image_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    with pytest.raises(RuntimeError):
        msdnet(exits=2, image_size=32).eval()(torch.rand(1, 3, height, width))


@pytest.mark.parametrize("size", [129, 224, 384])
def test_image_sizes_of_the_imagenet_stem(size: int) -> None:
    knobs = {**IMAGENET, "exits": 1, "base": 1, "image_size": size}
    assert on_meta(**knobs).eval()(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 1, 1000)
    with pytest.raises(UsageError, match="129 to 384"):
        msdnet(**{**knobs, "image_size": 128 if size < 384 else 385})


def test_the_refusal_says_how_many_scales_would_fit() -> None:
    with pytest.raises(UsageError, match=r"3 scales cannot take 16 x 16 images.* maps of 4 x 4, .* use 2 scales"):
        msdnet(image_size=16)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"exits": 0}, "exits must be a whole number of at least 1, not 0"),
        ({"exits": "many"}, "exits must be a whole number of at least 1, not 'many'"),
        ({"exits": True}, "exits must be"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"base": 0}, "base must be"),
        ({"damping": "yes"}, "damping must be true or false, not 'yes'"),
        ({"bottleneck": "off"}, "bottleneck must be true or false, not 'off'"),
        ({"step": 1.5}, "step must be"),
        ({"growth": -6}, "growth must be"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"head_channels": 0}, "head_channels must be"),
        ({"growth_factors": 3}, "growth_factors must be a list of whole numbers"),
        ({"growth_factors": (1, 0)}, r"growth_factors\[1\] must be"),
        ({"bottleneck_factors": (1, 2)}, "growth_factors has 3, bottleneck_factors has 2"),
        ({"growth": 3, "growth_factors": (1, 1, 2)}, "must be even; found growth=3"),
        ({"step_mode": "odd"}, "step_mode must be one of lin_grow, even, not 'odd'"),
        ({"prune": "never"}, "prune must be one of max, min"),
        ({"stem": "mnist"}, "stem must be one of cifar, imagenet"),
        ({"reduction": 1.5}, "reduction must be a number between 0 and 1, not 1.5"),
        ({"reduction": 0.001}, "leaves no channels of 82"),
        ({"image_size": (1, 2, 3)}, "image_size must be one side or"),
        ({"image_size": 4, "growth_factors": (1,)}, "MSDNet with 1 scale cannot .* and they read sides of 5 to 12"),
    ],
)
def test_contradictions_are_refused_with_the_reason(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        msdnet(**knobs)


def test_parameters_without_gradient_are_those_of_maps_that_no_exit_reads() -> None:
    """The original computes finer maps to the very end, read or not; so do we, and count them."""

    def without_gradient(network: EarlyExitNet) -> set[str]:
        network(torch.rand(4, 3, 20, 20)).square().sum().backward()
        return {name for name, p in network.named_parameters() if p.grad is None}

    assert without_gradient(msdnet(**SMALL)) == set()
    two_left = msdnet(**SMALL, step_mode="even")  # of three scales, after four layers
    expected = {name for name, _ in two_left.named_parameters() if name.startswith("stages.3.parts.0.scales.0.")}
    assert without_gradient(two_left) == expected != set()


MERGED = {
    "three scales": {"growth_factors": (1, 2, 4), "image_size": 20},
    "as late as possible": {"growth_factors": (1, 2), "prune": "min", "image_size": 12},
    "without bottlenecks": {"growth_factors": (1, 2), "bottleneck": False, "image_size": 12},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "three scales" else []) for name in MERGED]
)
def test_a_compiled_network_joins_units_that_read_the_same_map(name: str) -> None:
    """To 1e-9 what it is by itself: logits, gradients, statistics; with fewer convolutions where there are such."""
    torch.manual_seed(0)
    knobs = {"exits": 2, "num_classes": 3, "base": 2, "channels": 4, "growth": 4, "head_channels": 4, "in_channels": 1}
    network = msdnet(**knobs, **MERGED[name]).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    twin, convolutions = deepcopy(network), []

    def backend(graph: fx.GraphModule, _: list[torch.Tensor]) -> Any:
        convolutions.extend(n for n in graph.graph.nodes if "conv2d" in str(n.target))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(network, dynamic=False, backend=backend)
    images = torch.randn(5, *network.image_shape, dtype=torch.float64)
    for _ in range(2):
        logits = [run(images) for run in (compiled, twin)]
        torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
        for each in logits:
            each.square().sum().backward()
    there = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert (len(convolutions) < there) == (name != "without bottlenecks")
    for (parameter, mine), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), parameter
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=1e-9)


def test_a_batch_norm_that_trains_otherwise_is_not_joined() -> None:
    torch.manual_seed(0)
    network = msdnet(exits=1, num_classes=3, base=2, channels=4, growth_factors=(1, 2), image_size=12).double()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        if number % 3:
            norm.momentum = 0.5
        elif number % 2:
            norm.eval()
    twin = deepcopy(network)
    torch._dynamo.reset()
    images = torch.randn(5, *network.image_shape, dtype=torch.float64)
    compiled = torch.compile(network, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(images), twin(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=1e-9)
