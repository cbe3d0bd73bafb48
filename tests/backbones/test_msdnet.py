"""MSDNet against the published tables, and what running it stage by stage promises."""

import itertools
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import fx, nn

from offramp.backbones import msdnet
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
        ({"damping": "yes"}, "damping must be true or false, not 'yes'"),
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
