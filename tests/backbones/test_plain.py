"""Our networks, and every form in which they are trained, against the textbook's: same values, same training.

A form makes of a network a function from images to logits `[K, B, C]` whose gradients land in the network's parameters.
B images, K exits, C outputs.
"""

import importlib.util
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from offramp.backbones import msdnet, ranet
from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.rules import Standard, Workbench


def _plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain", Path(__file__).with_name("plain.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = _plain()

Form = Callable[[EarlyExitNet], Callable[[Tensor], Tensor]]
Batches = Sequence[tuple[Tensor, Tensor]]
FORMS: dict[str, Form] = {
    "as it is": lambda network: network,
    "channels-last": lambda network: network.to(memory_format=torch.channels_last),
}
any_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


class Case(NamedTuple):
    """A network in our form and in the textbook's."""

    ours: Callable[..., EarlyExitNet]
    textbook: Callable[..., nn.Module]
    knobs: dict[str, Any]

    def build(self, dtype: torch.dtype = torch.float64) -> tuple[EarlyExitNet, nn.Module]:
        """Both with the same weights, drawn so that no gain is 1 and no shift 0."""
        ours, textbook = self.ours(**self.knobs), self.textbook(**self.knobs)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter += 0.1 * torch.randn_like(parameter) * (parameter.dim() == 1)
        plain.copy_weights(ours, textbook)
        return ours.to(dtype), textbook.to(dtype)


def msdnets(**knobs: Any) -> Case:
    return Case(msdnet, plain.PlainMSDNet, knobs)


def ranets(**knobs: Any) -> Case:
    return Case(ranet, plain.PlainRANet, knobs)


EVEN: dict[str, Any] = {
    "exits": 4, "num_classes": 10, "base": 2, "step": 2, "step_mode": "even", "channels": 8, "growth": 4,
    "growth_factors": (1, 2), "bottleneck_factors": (2, 1), "head_channels": 16, "image_size": 20, "in_channels": 1,
}  # fmt: skip
IMAGENET: dict[str, Any] = {
    "exits": 4, "num_classes": 20, "base": 2, "step": 2, "step_mode": "even", "channels": 4, "growth": 4,
    "growth_factors": (1, 2, 4, 4), "stem": "imagenet", "head_channels": None, "image_size": 224,
}  # fmt: skip
FUSED: dict[str, Any] = {
    "num_classes": 10, "blocks": 1, "block_step": 1, "scales": (1, 2, 3), "channels": 4, "growth": 8, "step": 2,
    "step_mode": "even", "head_channels": 16, "image_size": 32,
}  # fmt: skip
REPEATED = {**FUSED, "scales": (1, 2, 3, 3), "growth_factors": (4, 2, 1, 1), "damping": True}
MSDNET7, RANET6 = msdnets(), ranets()
SMALL = {"msdnet": msdnets(**EVEN), "msdnet damping": msdnets(**EVEN, damping=True), "ranet": ranets(**FUSED)}
ALL = {
    **SMALL,
    "msdnet-7": MSDNET7,
    "ranet-6": RANET6,
    "msdnet 28 pixels": msdnets(**{**EVEN, "growth_factors": (1, 2, 4), "bottleneck_factors": None, "image_size": 28}),
    "msdnet 224 pixels": msdnets(**IMAGENET, damping=True),
    "msdnet prune min": msdnets(**EVEN, prune="min", reduction=0.4),
    "msdnet no transitions": msdnets(**EVEN, reduction=0),
    "ranet repeated scales": ranets(**REPEATED),
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)


def batches_for(network: EarlyExitNet, number: int, size: int) -> Batches:
    shape = (size, *network.image_shape)
    return [(torch.randn(shape), torch.randint(network.num_classes, (size,))) for _ in range(number)]


def train_ours(
    network: EarlyExitNet, form: Form, batches: Batches, steps: int, dtype: torch.dtype, precision: Any = "float32"
) -> list[float]:
    """What `plain.train_steps` does, done by our rule; the objective is cross-entropy."""
    network.to(dtype).train()
    forward = form(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    rule.prepare(Workbench(network, forward, CrossEntropy(), optimizer, precision))
    losses = []
    for number in range(steps):
        images, targets = batches[number % len(batches)]
        batch = Batch(images.to(dtype), targets, torch.arange(len(targets)), len(targets))
        losses.append(rule.step(batch, 0.0).loss.item())
    return losses


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, over the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300)).item()


@any_form
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_logits_are_the_textbooks_in_training_and_in_evaluation(case: Case, form: Form) -> None:
    ours, textbook = case.build()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in textbook.parameters())
    forward = form(ours)
    images = torch.randn(3, *ours.image_shape, dtype=torch.float64)
    with torch.no_grad():
        for training in (True, False):  # training first: evaluation then runs with statistics of its own
            ours.train(training), textbook.train(training)
            wanted = textbook(images)
            assert wanted.std(1).min() > 0, "these logits would not tell images apart"
            assert relative_error(forward(images), wanted) <= 1e-12
