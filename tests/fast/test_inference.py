"""A plan for inference gives what the module gives, for any number of images."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.backbones import msdnet, ranet
from offramp.fast.forward import Convolution, Product
from offramp.fast.inference import InferencePlan, Planned
from offramp.fast.packing import can_pack
from offramp.fast.tracing import UntraceableError
from offramp.network import EarlyExitNet, as_carry

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN operators"
)
NUM_IMAGES = (1, 2, 7, 0)


class Written(nn.Module):
    """A part whose forward is a function of itself and its maps."""

    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, *maps: Tensor) -> object:
        return self.run(self, *maps)


def lived_in(part: nn.Module) -> nn.Module:
    """With running averages, gains and shifts that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
                (module.weight, 0.5, 2),
                (module.bias, -1, 1),
            ):
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return part.eval().requires_grad_(False)


def conv(inputs: int, outputs: int, kernel: int = 1, **settings: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **settings)


def unit(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, kernel), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def residual(part, x):
    return part.relu(x + part.norm(part.conv(x)))


def dense(part, x):
    x = torch.cat([x, part.first(x)], 1)
    x = torch.cat([x, part.second(x)], 1)
    return part.last(x), x[:, :4]


def pre_activated(part, x):
    return part.conv(F.relu(part.norm(x)))


def siblings(part, x):
    return torch.cat([part.first(x), part.second(x), F.relu(part.third(x))], 1), x


def shared(part, x):
    x = part.norm(part.conv(x))
    return part.norm(part.conv(x)) + x


def in_two_joins(part, x):
    y = part.first(x)
    return torch.cat([x, y], 1), torch.cat([y, x], 1), y.mean((2, 3))


def reads_before_relu(part, x):
    y = part.conv(x)
    return y + F.relu(y)


PARTS = {
    "residual": Written(residual, conv=conv(4, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(inplace=True)),
    "dense": Written(dense, first=unit(4, 3, 3), second=unit(7, 2), last=unit(9, 5)),
    "pre-activated": Written(pre_activated, norm=nn.BatchNorm2d(4), conv=conv(4, 6, 3)),
    "siblings": Written(siblings, first=unit(4, 3), second=unit(4, 2), third=conv(4, 5)),
    "shared": Written(shared, conv=conv(4, 4, 3), norm=nn.BatchNorm2d(4)),
    "in two joins": Written(in_two_joins, first=unit(4, 3, 3)),
    "read before ReLU": Written(reads_before_relu, conv=conv(4, 4)),
    "depthwise": nn.Sequential(conv(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6(), conv(4, 8), nn.BatchNorm2d(8)),
    "exit": nn.Sequential(unit(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    "with a bias": nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, dilation=2)),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", PARTS)
def test_the_same_values_for_any_number_of_images(name: str, layout: torch.memory_format) -> None:
    part = lived_in(PARTS[name])
    plan = InferencePlan(part, [torch.empty(1, 4, 9, 8)], exact=part)
    for num_images in NUM_IMAGES:
        x = torch.randn(num_images, 4, 9, 8).contiguous(memory_format=layout)
        before = x.clone()
        with torch.inference_mode():
            found, wanted = plan([x]), as_carry(part(x.clone()))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(x, before)


@pytest.mark.parametrize("network", [msdnet, ranet])
def test_whole_networks(network: Callable[..., EarlyExitNet]) -> None:
    net = lived_in(network(num_classes=5, image_size=32, channels=4, growth=4, head_channels=8, damping=True))
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        wanted, carry = net(x), (x,)
        for k, (stage, head) in enumerate(zip(net.stages, net.exits, strict=True)):
            carry = InferencePlan(stage, carry, exact=stage)(carry)
            (logits,) = InferencePlan(head, [carry[net.reads[k]]], exact=head)([carry[net.reads[k]]])
            torch.testing.assert_close(logits, wanted[k], atol=1e-4, rtol=1e-4)  # logits are around 20


def test_convolutions_of_one_map_are_one_and_joins_copy_nothing() -> None:
    part = lived_in(PARTS["siblings"])
    plan = InferencePlan(part, [torch.empty(1, 4, 5, 5)], exact=part)
    assert [*map(type, plan.steps)] == [Product]
    part = lived_in(PARTS["dense"])
    plan = InferencePlan(part, [torch.empty(1, 4, 5, 5)], exact=part)
    assert [*map(type, plan.steps)] == [Convolution, Product, Product]


class Calls(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_images", [1, 4])
def test_little_is_called_that_computes_nothing(num_images: int) -> None:
    """With few images calls are what takes time. One slab of all maps that are joined, and one map that is cut off."""
    part = lived_in(PARTS["dense"])
    x = torch.randn(num_images, 4, 5, 5)
    plan = InferencePlan(part, [x], exact=part)
    with torch.no_grad(), Calls() as calls:
        plan([x])
    slab = ["empty", "permute", "split_with_sizes", "copy_"]  # the input's place in it
    first = ["slice", "_convolution_pointwise", "copy_"]
    second = ["as_strided", "_addmm_activation", "as_strided", "copy_"]
    last = ["as_strided", "_addmm_activation", "as_strided"]
    assert calls.names == [*slab, *first, *second, *last, "slice"]


def test_rows_of_maps_that_lie_in_any_way() -> None:
    part = lived_in(nn.Sequential(conv(3, 5), nn.ReLU()))
    plan = InferencePlan(part, [torch.empty(1, 3, 4, 6)], exact=part)
    wide = torch.randn(2, 9, 8, 12).contiguous(memory_format=torch.channels_last)
    assert [*map(type, plan.steps)] == [Product]
    for x in (
        wide[:, 2:5, :4, :6],
        wide[:, ::3, ::2, ::2],
        wide[:1, 4:7, :4, :6],
        wide[:, 2:5, :4, :1].expand(-1, -1, -1, 6),
        wide[:1, 2:5, :4, :6].expand(3, -1, -1, -1),
        torch.randn(2, 6, 4, 3).transpose(1, 3),
    ):
        torch.testing.assert_close(plan([x])[0], part(x))


def test_a_map_is_let_go_when_nobody_reads_it_any_more() -> None:
    part = lived_in(nn.Sequential(*(conv(4, 4, 3) for _ in range(5))))
    plan = InferencePlan(part, [torch.empty(1, 4, 5, 5)], exact=part)
    assert plan.over == [[0], [1], [2], [3], [4]]
    assert len(plan.slabs) == 6


def test_bfloat16_folds_in_float32() -> None:
    part = lived_in(nn.Sequential(*itertools.chain.from_iterable((unit(8, 8), unit(8, 8, 3)) for _ in range(3))))
    planned = Planned(part, dtype=torch.bfloat16, fold=True, otherwise=lambda part: part)
    x = torch.randn(4, 8, 9, 9)
    folded_late = InferencePlan(planned.part, [x.bfloat16()], exact=planned.part)
    with torch.inference_mode():
        exact = part(x)
        error, error_late = (
            (given.float() - exact).square().mean() for given in (planned(x.bfloat16()), folded_late([x.bfloat16()])[0])
        )
    assert planned.why_not is None
    assert error < error_late
    assert part[0][0].weight.dtype == torch.float32


def test_without_folding_batch_norm_runs_by_itself() -> None:
    part = lived_in(PARTS["residual"])
    x = torch.randn(2, 4, 6, 6)
    plan = InferencePlan(part, [x], exact=None)
    torch.testing.assert_close(plan([x])[0], part(x))
    assert len(plan.steps) == 1 + len(InferencePlan(part, [x], exact=part).steps)


def by_value(part, x):
    return part.conv(x) if x.sum() > 0 else x


def writes_into_what_it_reads(part, x):
    y = part.conv(x)
    joined = torch.cat([x, y], 1)
    y.add_(1)
    return joined + y.mean()


@pytest.mark.parametrize("forward", [by_value, writes_into_what_it_reads])
def test_a_part_that_cannot_be_planned_runs_otherwise(forward: Callable[..., object]) -> None:
    part = lived_in(Written(forward, conv=conv(4, 4, 3)))
    called = []

    def otherwise(twin: nn.Module) -> nn.Module:
        assert twin is not part
        called.append(twin)
        return twin

    planned = Planned(part, dtype=torch.float32, fold=True, otherwise=otherwise)
    for x in torch.randn(3, 2, 4, 5, 5):
        torch.testing.assert_close(planned(x), part(x))
    assert len(called) == 1
    assert planned.why_not


def test_hooks_are_heard() -> None:
    part = lived_in(unit(4, 4))
    part[0].register_forward_hook(lambda module, given, result: result + 1)
    planned = Planned(part, dtype=torch.float32, fold=True, otherwise=lambda part: part)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(planned(x), part(x))
    assert planned.why_not == "somebody listens to its modules"


def test_nothing_to_gain_is_refused() -> None:
    with pytest.raises(UntraceableError, match="no convolution"):
        InferencePlan(nn.Flatten().eval(), [torch.empty(1, 4, 5, 5)], exact=None)


def test_another_shape_gets_another_plan() -> None:
    part = lived_in(PARTS["dense"])
    planned = Planned(part, dtype=torch.float32, fold=True, otherwise=lambda part: part)
    for side in (5, 8, 5):
        x = torch.randn(2, 4, side, side)
        torch.testing.assert_close(planned(x), part(x), atol=1e-5, rtol=1e-5)
    assert len(planned._plans) == 2
