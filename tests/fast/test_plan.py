"""Whatever a plan accepts, it is the module: values, gradients, running statistics."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from offramp.fast import Kernels, Library
from offramp.fast.plan import Plan
from offramp.fast.steps import Copying, Units
from offramp.fast.tracing import UntraceableError


def unit(inputs: int, outputs: int, size: int = 1, **how: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, **{"padding": size // 2, "bias": False} | how)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Part(nn.Module):
    """A part whose forward pass is a function of its modules and maps; its norms scale and shift."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)
        self.double()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)

    def forward(self, *maps: Tensor) -> Any:
        return self.run(self, *maps)


def image(channels: int = 3, batch: int = 4, height: int = 5, width: int = 6) -> Tensor:
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def cat(*maps: Tensor) -> Tensor:
    return torch.cat(maps, 1)


def ab(p: Any, x: Tensor) -> Tensor:
    """Of eight channels."""
    return cat(p.a(x), p.b(x))


def dense(p: Any, x: Tensor) -> tuple[Tensor, ...]:
    one = cat(x, p.a(x))
    two = cat(one, p.d(one))
    return two, cat(two, p.h(two)), one


def twice(p: Any, x: Tensor) -> tuple[Tensor, ...]:
    a, b = p.a(x), p.b(x)
    return p.c(cat(a, b)), cat(a, b), cat(b, a), p.e(cat(a, b, a)), cat(a, a), b


def pooled_before_an_append(p: Any, x: Tensor) -> Tensor:
    """What reads a map keeps it for its backward pass, and others write beside it meanwhile."""
    a = p.a(x)
    pooled = nn.functional.max_pool2d(a, 3, 1, 1).exp() + p.plain(a)
    return cat(a, p.b(pooled[:, :3])) * cat(pooled, pooled)


def slices(p: Any, x: Tensor) -> tuple[Tensor, ...]:
    y = ab(p, x)
    return p.a3(y[:, 2:6]), p.c(y), y[:, 1:7][:, 2:5], p.a3(y[:, -4:]), p.a3(y[:, ::2]), y[:, 6:2], y[:, :, 1:3]


def of_joined(p: Any, x: Tensor) -> tuple[Tensor, ...]:
    y, z = ab(p, x), cat(p.b2(x), p.a2(x))
    return p.f(cat(y, z)), p.f(cat(z[:, 4:], y, z[:, :4])), cat(y[:, 5:], y[:, :5])


def images_as_channels(p: Any, x: Tensor) -> tuple[Tensor, ...]:
    y = p.a(x).reshape(1, -1, 5, 6)
    return y[:, :4] * 2, cat(y, y).reshape(-1, 8, 5, 6), cat(p.a(x).transpose(0, 1), p.b(x).transpose(0, 1)).exp()


def between(p: Any, x: Tensor) -> Tensor:
    """Numbers, sizes, flat and complex values cross from one segment to another."""
    n, flat, waves = x.size(2), p.a(x).mean((2, 3)), torch.fft.rfft2(p.a2(x))
    y = cat(p.a3(p.a(x)), torch.fft.irfft2(waves, s=x.shape[2:]))
    return p.c(y) * n + flat.sum() + y.flatten(1).view(x.shape[0], 2, -1).sum()


def norm_read_twice(p: Any, x: Tensor) -> Tensor:
    norm = p.a[1](p.a[0](x))
    return cat(p.a[2](norm) + norm, p.b(x))


def shared(p: Any, x: Tensor) -> Tensor:
    z = p.a[0](p.a3(p.a3(x.repeat(1, 2, 1, 1)[:, :4]))[:, :3])
    return p.a[2](p.a[1](z)) + torch.relu(p.b2[1](p.a[0](x))) * p.a3(z)


def added_in_place(p: Any, x: Tensor) -> Tensor:
    y = p.plain(p.a(x))
    y += p.a2(x)
    return nn.functional.relu(p.b2[1](p.b2[0](x)), inplace=True) + y


JOINS: dict[str, Callable[..., Any]] = {
    "dense": dense,
    "twice": twice,
    "the second part alone": lambda p, x: (p.c(ab(p, x)), cat(p.b(x), x), cat(x, p.b(x)), x),
    "of one": lambda p, x: cat(p.a(x)),
    "keywords": lambda p, x: p.c(torch.concat(tensors=(p.a(x), p.b(x)), dim=-3)),
    "axis": lambda p, x: p.c(torch.concatenate([p.a(x), p.b(x)], axis=1)),
    "other axes": lambda p, x: (lambda a, b: (torch.cat([a, b], 2), torch.cat([a, b]), torch.cat([a, b], -1)))(
        p.a(x), p.b(x)
    ),
    "of joined": of_joined,
    "slices": slices,
    "slices of other axes": lambda p, x: (lambda y: (y[..., 1:3], y[..., 1:3, :], y[:, 1:3, ...]))(ab(p, x)),
    "slices of images": lambda p, x: (lambda y: (y[1:, 1:3], y[:, 1:3, None], y[0]))(ab(p, x)),
    "slices of the input": lambda p, x: (p.g(x[:, 1:]), x[:, :2]),
    "unread": lambda p, x: (p.a(x), p.b(x))[0],
    "unread in a join": lambda p, x: (lambda y: (p.a3(y[:, :4]), p.a(x)))(ab(p, x)),
    "same output twice": lambda p, x: (lambda a: (a, p.b(x), x, a, x))(p.a(x)),
    "pooled before an append": pooled_before_an_append,
    "norm read twice": norm_read_twice,
    "relu read twice": lambda p, x: (lambda a: (p.a3(a), p.plain(a), a))(p.a(x)),
    "shared": shared,
    "images as channels": images_as_channels,
    "between segments": between,
    "added in place": added_in_place,
}


def part_of(name: str) -> Part:
    return Part(
        JOINS[name],
        a=unit(3, 4), a2=unit(3, 4), a3=unit(4, 4, 3), b=unit(3, 4, 3), b2=unit(3, 4), c=unit(8, 5), d=unit(7, 2),
        e=unit(12, 2), f=unit(16, 4), g=unit(2, 3), h=unit(9, 3, 3), plain=nn.Conv2d(4, 4, 3, padding=1),
    )  # fmt: skip


@pytest.mark.parametrize("name", JOINS)
def test_joins_and_slices(same, name: str) -> None:
    part = part_of(name)
    plan = same(part, image())
    same(part, image(batch=3), plan=plan)


def test_a_dense_part_moves_nothing() -> None:
    plan = Plan(part_of("dense"), [image()])
    assert len(plan.slabs) == 1
    assert not any(isinstance(step, Copying) for step in plan.steps)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "bias": {"bias": True},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "out_channels": 8},
    "dilation": {"dilation": 2},
    "stride": {"stride": 2},
    "two strides": {"stride": (2, 1)},
    "no padding": {"padding": 0},
    "same": {"padding": "same"},
    "reflected": {"padding_mode": "reflect"},
    "not square": {"kernel_size": (3, 1), "padding": (1, 0)},
    "even": {"kernel_size": 2},
    "1 x 1 with stride": {"kernel_size": 1, "padding": 0, "stride": 2},
    "1 x 1 with bias": {"kernel_size": 1, "padding": 0, "bias": True},
    "1 x 1 with padding": {"kernel_size": 1, "padding": 1},
    "1 x 1 with groups": {"kernel_size": 1, "padding": 0, "groups": 2},
}
NORMS: dict[str, dict[str, Any]] = {
    "usual": {},
    "eps": {"eps": 0.1},
    "momentum": {"momentum": 0.3},
    "momentum 0": {"momentum": 0.0},
    "momentum 1": {"momentum": 1.0},
    "mean of all": {"momentum": None},
    "no gain": {"affine": False},
    "no averages": {"track_running_stats": False},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(same, kernels: Kernels, name: str) -> None:
    """Beside 1 x 1 units of the same map, with which not one of them may run."""
    how = {"out_channels": 4, "kernel_size": 3, "padding": 1, "bias": False} | CONVOLUTIONS[name]
    odd = nn.Sequential(nn.Conv2d(4, **how), nn.BatchNorm2d(how["out_channels"]), nn.ReLU())
    part = Part(lambda p, x: (p.a(x), p.odd(x), p.b(x)), a=unit(4, 3), odd=odd, b=unit(4, 5))
    same(part, image(4, height=6, width=7), kernels=kernels)


@pytest.mark.parametrize("name", NORMS)
def test_norms(same, name: str) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, **NORMS[name]), nn.ReLU())
    same(Part(lambda p, x: (p.other(x), p.a(x)), other=other, a=unit(3, 5)), image())


def test_norms_of_one_eps_run_as_one() -> None:
    part = Part(lambda p, x: (p.a(x), p.b(x), p.c(x)), a=unit(3, 4), b=unit(3, 2), c=unit(3, 5))
    part.c[1].eps = 0.1
    (one, other) = (step for step in Plan(part, [image()]).steps if isinstance(step, Units))
    assert [len(one.convs), len(other.convs)] == [2, 1]


@pytest.mark.parametrize("frozen", ["a.0", "a.1", "b", "plain", "all"])
def test_what_is_frozen_gets_nothing(same, frozen: str) -> None:
    part = Part(lambda p, x: p.c(cat(p.a(x), p.plain(p.b(x)))), a=unit(3, 4), b=unit(3, 4), c=unit(8, 3),
                plain=nn.Conv2d(4, 4, 1))  # fmt: skip
    (part if frozen == "all" else part.get_submodule(frozen)).requires_grad_(False)
    same(part, image())


def test_inputs_that_need_no_gradient(same) -> None:
    part = part_of("dense")
    plan = same(part, image())
    results = plan([image()], Library())
    sum(y.sum() for y in results).backward()
    assert all(p.grad is not None for p in (*part.a.parameters(), *part.d.parameters(), *part.h.parameters()))


def larger(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0)


def test_several_inputs_of_several_shapes(same) -> None:
    part = Part(
        lambda p, x, v, y: (cat(y, p.a(x)) * v[:, :, None, None], y, v, p.b(larger(y))),
        a=unit(3, 4, 3, stride=2), b=unit(3, 2),
    )  # fmt: skip
    same(part, image(height=6), torch.randn(4, 7, dtype=torch.float64), image(height=3, width=3))
    same(part, image(3, 5, 4, 4), torch.randn(5, 7, dtype=torch.float64), image(3, 5, 2, 2))


def test_the_same_map_as_two_inputs(same) -> None:
    part = Part(lambda p, x, y: p.c(cat(p.a(x), p.b(y), x, y)), a=unit(3, 2), b=unit(3, 4), c=unit(12, 3))
    x = image().requires_grad_()
    gradient = torch.autograd.grad(Plan(part, [x, x])([x, x], Library())[0].square().sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(part(x, x).square().sum(), x))


def test_inputs_may_lie_anyhow() -> None:
    part = part_of("dense")
    plan, x = Plan(part, [image()]), image()
    wanted = plan([x], Library())
    for way in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        image(6)[:, ::2].copy_(x),
    ):
        torch.testing.assert_close(plan([way], Library()), wanted)
    spread = x[:, :, :1, :1].expand_as(x)
    torch.testing.assert_close(plan([spread], Library()), part(spread))


def test_memory_is_let_go_with_the_pass() -> None:
    part, x = part_of("twice"), image()
    results = Plan(part, [x])([x], Library())
    node = results[0].grad_fn
    assert node.saved_tensors
    sum(y.sum() for y in results).backward()
    with pytest.raises(RuntimeError, match="second time"):
        _ = node.saved_tensors


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "no unit": (lambda p, x: p.plain(p.plain(x)), "no convolution"),
    "values": (lambda p, x: p.a(x) if x.sum() > 0 else x, "cannot be traced"),
    "list": (lambda p, x: [p.a(x)], "cannot be traced"),
    "dict": (lambda p, x: {"a": p.a(x)}, "cannot be traced"),
    "number": (lambda p, x: (p.a(x), 3), "cannot be traced"),
    "nested": (lambda p, x: (p.a(x), (x,)), "cannot be traced"),
    "nothing": (lambda p, x: (p.a(x), None), "cannot be traced"),
    "method in place": (lambda p, x: p.a(x).mul_(2), "mul_ changes a tensor"),
    "function in place": (lambda p, x: nn.functional.dropout(p.a(x), inplace=True), "dropout changes a tensor"),
    "module in place": (lambda p, x: p.act(p.plain(p.a(x))), "act changes a tensor"),
    "read after a change": (lambda p, x: added_to(p.plain(p.a(x))), "other values than the module"),
    "input changed": (lambda p, x: (p.a(x), written(x))[0], "changes what it is given"),
    "several": (lambda p, x: p.a(x).split(2, 1)[0], "split gives several"),
    "out": (lambda p, x: torch.cat([p.a(x), x], 1, out=torch.empty(0, dtype=x.dtype)), "tensors"),
    "strides": (lambda p, x: (lambda y: y * y.stride(1))(p.a(x)), "stride looks at"),
    "as_strided": (lambda p, x: p.a(x).as_strided((2, 2), (1, 1)), "as_strided looks at|other values"),
    "bits": (lambda p, x: p.a(x).view(torch.int64), "cannot be traced"),
    "tensors of its own": (lambda p, x: p.a(x) * torch.tensor([2.0]), "tensors of its own"),
    "random tensors": (lambda p, x: p.a(x) * torch.rand(()), "draws random numbers"),
    "two types": (lambda p, x: (p.a(x), p.short(x.float())), "several types"),
}


def written(x: Tensor) -> None:
    """Seen by whoever holds the same tensor; a trace takes it for a sum."""
    x += 1


def added_to(x: Tensor) -> Tensor:
    y = x
    y += 1
    return x * 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_plan_refuses(name: str) -> None:
    forward, why = REFUSED[name]
    part = Part(forward, a=unit(3, 4), plain=nn.Conv2d(4 if "no unit" not in name else 3, 3, 1))
    part.act, part.short = nn.ReLU(inplace=True), unit(3, 4)
    x, before = image(), torch.get_rng_state()
    with pytest.raises(UntraceableError, match=why):
        Plan(part, [x])
    assert torch.equal(before, torch.get_rng_state())


def test_a_plan_leaves_the_part_as_it_was() -> None:
    """Also where it is refused on the way."""

    def keeps(p: Any, x: Tensor) -> Tensor:
        p.count += 1
        p.last = p.a(x)
        return p.last

    part = Part(keeps, a=unit(3, 4))
    part.register_buffer("count", torch.zeros(()))
    before, x, drawn = (
        {name: value.clone() for name, value in part.state_dict().items()},
        image(),
        torch.get_rng_state(),
    )
    with pytest.raises(UntraceableError, match="changes itself"):
        Plan(part, [x])
    torch.testing.assert_close(part.state_dict(), before, rtol=0, atol=0)
    assert not hasattr(part, "last")
    assert torch.equal(drawn, torch.get_rng_state())
    part = part_of("dense")
    drawn = torch.get_rng_state()
    Plan(part, [x])
    assert torch.equal(drawn, torch.get_rng_state())


KINDS = ("unit", "unit", "pointwise", "pointwise", "cat", "cat", "slice", "add", "pool", "conv")
GRAPHS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 99), st.integers(1, 4)),
    min_size=2,
    max_size=12,
)


class Drawn(nn.Module):
    """A part from a list of operations, each on maps before it; several of its maps are given back."""

    def __init__(self, graph: list[tuple[str, int, int, int]], outputs: list[int]) -> None:
        super().__init__()
        self.steps: list[tuple[str, int, int, int]] = []
        self.own = nn.ModuleList()
        widths = [3]
        for kind, i, j, width in [("pointwise", 0, 0, 2), *graph]:
            i, j = i % len(widths), j % len(widths)
            if kind == "cat" and widths[i] + widths[j] > 24:
                kind = "pool"
            self.own.append(self._module(kind, widths[i], width))
            self.steps.append((kind, i, j, width))
            new = {"cat": widths[i] + widths[j], "slice": min(width, widths[i]), "add": widths[i], "pool": widths[i]}
            widths.append(new.get(kind, width))
        self.outputs = sorted({k % len(widths) for k in outputs})
        self.double()

    def _module(self, kind: str, inputs: int, outputs: int) -> nn.Module:
        if kind in ("unit", "pointwise"):
            return unit(inputs, outputs, 3 if kind == "unit" else 1)
        return nn.Conv2d(inputs, outputs, 1) if kind == "conv" else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = [x]
        for (kind, i, j, width), own in zip(self.steps, self.own, strict=True):
            one, other = maps[i], maps[j]
            if kind in ("unit", "pointwise", "conv"):
                new = own(one)
            elif kind == "cat":
                new = torch.cat([one, other], 1)
            elif kind == "slice":
                new = one[:, -width:] if j % 2 else one[:, :width]
            elif kind == "add":
                new = one + other.mean(1, keepdim=True)
            else:
                new = nn.functional.max_pool2d(one, 3, 1, 1) * 0.5
            maps.append(new)
        return tuple(maps[k] for k in self.outputs)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GRAPHS, st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_drawn_parts(same, graph: list[tuple[str, int, int, int]], outputs: list[int]) -> None:
    same(Drawn(graph, outputs), image(3, 3, 4, 3))
