"""The published networks in a form: planned as a whole, and as exact as torch is."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.backbones import msdnet, ranet
from offramp.fast import Kernels, Merged
from offramp.fast.steps import allocated
from offramp.network import EarlyExitNet

FAMILIES = {
    "msdnet": lambda: msdnet(
        exits=3, num_classes=3, channels=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2), head_channels=8,
        image_size=16, in_channels=1,
    ),
    "ranet": lambda: ranet(
        num_classes=3, scales=(1, 2), blocks=2, block_step=2, growth_factors=(2, 1), channels=4, growth=4, step=1,
        head_channels=8, image_size=16, in_channels=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_published_networks_are_planned_as_a_whole(family: str, kernels: Kernels) -> None:
    network = FAMILIES[family]().double()
    form, twin = Merged(network, kernels), copy.deepcopy(network)
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    found, wanted = form(x), twin(x)
    torch.testing.assert_close(found, wanted)
    for logits_KBC in (found, wanted):
        logits_KBC.square().sum().backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], [p.grad for p in twin.parameters()])
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()))
    assert not form.why_not
    assert all(part._plans for part in (*form.stages, *form.exits))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bf16 network", "autocast"])
def test_precisions(family: str, precision: str) -> None:
    """Off from float64 by no more than the modules are (channels-last, as maps lie in a form), twice over."""
    network = FAMILIES[family]()
    exact = copy.deepcopy(network).double()
    dtype = torch.bfloat16 if precision == "bf16 network" else torch.float32
    twin = copy.deepcopy(network.to(dtype)).to(memory_format=torch.channels_last)
    x = torch.randn(8, 1, 16, 16)
    exact(x.double()).square().sum().backward()
    errors = []
    for module, own in ((Merged(network), network), (twin, twin)):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            logits = module(x.to(dtype))
        logits.float().square().sum().backward()
        pairs = zip(own.parameters(), exact.parameters(), strict=True)
        errors.append(torch.stack([(p.grad.double() - truth.grad).norm() for p, truth in pairs]).norm())
    assert 0 < errors[0] < 2 * errors[1]
    assert {p.grad.dtype for p in network.parameters()} == {dtype}


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Every slab as it is when it is allocated, while torch fills with nan what nobody has written."""
    seen = []

    def watched(*given: Any) -> Tensor:
        slab = allocated(*given)
        seen.append(slab.clone())
        return slab

    monkeypatch.setattr("offramp.fast.steps.allocated", watched)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield seen
    torch.use_deterministic_algorithms(False)


def train(network: EarlyExitNet, images: Tensor) -> list[Tensor]:
    """Logits and gradients."""
    logits_KBC = Merged(network)(images)
    logits_KBC.float().square().sum().backward()
    return [logits_KBC, *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_in_fresh_memory_is_never_read(family: str, slabs: list) -> None:
    given = train(FAMILIES[family](), torch.randn(8, 1, 16, 16))
    assert all(x.isfinite().all() for x in given)
    assert slabs
    assert all(slab.isnan().all() for slab in slabs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("amx", [True, False, None])
def test_bf16_maps_lie_in_clear_memory_where_processors_read_beside_them(
    family: str, amx: bool | None, slabs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN's bf16 products read beside their channels on processors with AMX; None: torch does not tell."""
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
    if amx is None:
        monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    given = train(FAMILIES[family]().bfloat16(), torch.randn(8, 1, 16, 16).bfloat16())
    assert slabs
    if amx is False:
        assert all(slab.isnan().all() for slab in slabs)
    else:
        assert not any(slab.any() for slab in slabs)
    assert (has_amx and amx is False) or all(x.isfinite().all() for x in given)


def test_gradients_add_up() -> None:
    network = FAMILIES["msdnet"]().double()
    form, twin = Merged(network), copy.deepcopy(network)
    for batch in (2, 3):
        x = torch.randn(batch, 1, 16, 16, dtype=torch.float64)
        form(x).square().sum().backward()
        twin(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], [p.grad for p in twin.parameters()])
