"""The published networks in a form: planned as a whole, and as exact as torch is."""

import copy

import pytest
import torch

from offramp.backbones import msdnet, ranet
from offramp.fast import Kernels, Merged

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


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_in_fresh_memory_is_never_read(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some processors' bf16 products read beside their channels; torch then fills what it allocates with nan."""
    network = FAMILIES[family]().bfloat16()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        logits_KBC = Merged(network)(torch.randn(8, 1, 16, 16).bfloat16())
        logits_KBC.float().square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert logits_KBC.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_gradients_add_up() -> None:
    network = FAMILIES["msdnet"]().double()
    form, twin = Merged(network), copy.deepcopy(network)
    for batch in (2, 3):
        x = torch.randn(batch, 1, 16, 16, dtype=torch.float64)
        form(x).square().sum().backward()
        twin(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], [p.grad for p in twin.parameters()])
