"""How strongly the true class is pushed: closed forms against differentiation. K exits, B images, C outputs."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from offramp.objectives import (
    CrossEntropy,
    Damping,
    DiscardThreshold,
    DynamicWeights,
    LabelSmoothing,
    Objective,
    PowerSqrt,
    Terms,
)

OWN_WORDS = [
    CrossEntropy(),
    DiscardThreshold(0.6),
    DiscardThreshold(0.6, mean="kept"),
    LabelSmoothing(0.3),
    Damping(0.4),
    Damping((0.1, 0.4, 2.0)),
    PowerSqrt(0.4),
    PowerSqrt(0.4, root="batch"),
    *(
        PowerSqrt(0.4, weighting=DynamicWeights(alpha=0.7, applied_to=where, normalisation=form, over=over))
        for where, form, over in (
            ("gradient", "max", "exits"),
            ("gradient", "tanh", "batch"),
            ("cross-entropy", "max", "exits"),
            ("root", "min-max", "exits"),
            ("gradient", "centre", "exits"),  # with weights below 0
            ("cross-entropy", "centre", "exits"),
            ("root", "centre", "batch"),
        )
    ),
    Damping(0.4, weighting=DynamicWeights(applied_to="cross-entropy", reverse=True)),
]


def batch(num_outputs: int = 5) -> tuple[Tensor, Tensor]:
    """Logits of which some exits are sure and right, some sure and wrong."""
    return 4 * torch.randn(3, 64, num_outputs, dtype=torch.float64), torch.randint(4, (64,))


def by_differentiation(objective: Objective, logits_KBC: Tensor, targets_B: Tensor) -> Tensor:
    leaf = logits_KBC.clone().requires_grad_()
    terms = objective.terms(leaf, targets_B)
    (gradient_KBC,) = torch.autograd.grad(terms.loss_KB.sum(), leaf)
    return -gradient_KBC[:, torch.arange(len(targets_B)), targets_B] / terms.stats_KB.get("weight", torch.ones(()))


@pytest.mark.parametrize("objective", OWN_WORDS, ids=str)
def test_an_objectives_own_words_are_what_differentiation_finds(objective: Objective):
    assert type(objective).push is not Objective.push
    logits_KBC, targets_B = batch(4 if objective.damping_neuron == "refused" else 5)
    stats_KB = objective.terms(logits_KBC, targets_B).stats_KB
    said_KB = objective.push(logits_KBC, targets_B, stats_KB)
    found_KB = by_differentiation(objective, logits_KBC, targets_B)
    torch.testing.assert_close(said_KB, found_KB, rtol=1e-9, atol=1e-13)
    default_KB = Objective.push(objective, logits_KBC, targets_B, stats_KB)
    torch.testing.assert_close(default_KB, found_KB, rtol=1e-12, atol=1e-15)
    if "off_or_reversed" in stats_KB:
        moved_KB = said_KB * stats_KB.get("weight", torch.ones(()))
        assert torch.equal(moved_KB <= 0, stats_KB["off_or_reversed"] == 1)
        assert 0 < stats_KB["off_or_reversed"].sum() < stats_KB["off_or_reversed"].numel()


def test_weights_that_carry_a_gradient_are_differentiated():
    """There the closed form does not hold: the weight of one exit changes with the logits of another."""
    objective = PowerSqrt(0.4, weighting=DynamicWeights(with_gradient=True))
    logits_KBC, targets_B = batch()
    stats_KB = objective.terms(logits_KBC, targets_B).stats_KB
    said_KB = objective.push(logits_KBC, targets_B, stats_KB)
    torch.testing.assert_close(said_KB, by_differentiation(objective, logits_KBC, targets_B), rtol=1e-9, atol=1e-13)
    log_true_KB = logits_KBC.log_softmax(-1)[:, torch.arange(64), targets_B]
    closed_KB = 1 - (1 + stats_KB["gamma"]) * log_true_KB.exp()
    assert (said_KB - closed_KB).abs().max() > 0.01


@dataclass(frozen=True)
class Squared(Objective):
    """Somebody's own: (1 - F[y])^2 / 2, half of it at every second sample."""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        true_KB = logits_KBC.softmax(-1)[:, torch.arange(len(targets_B)), targets_B]
        weight_KB = torch.ones_like(true_KB).index_fill(1, torch.arange(0, len(targets_B), 2), 0.5)
        return Terms(weight_KB * (1 - true_KB) ** 2 / 2, {"weight": weight_KB.detach()})


def test_ones_own_objective_is_differentiated_also_where_gradients_are_switched_off():
    logits_KBC, targets_B = batch()
    true_KB = logits_KBC.softmax(-1)[:, torch.arange(64), targets_B]
    with torch.no_grad():
        found_KB = Squared().push(logits_KBC, targets_B, {})
    assert not found_KB.requires_grad
    torch.testing.assert_close(found_KB, true_KB * (1 - true_KB) ** 2, rtol=1e-12, atol=1e-15)


@dataclass(frozen=True)
class Nothing(Objective):
    """Says the same of all logits; without weight."""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        return Terms(torch.ones(logits_KBC.shape[:2]), {"weight": torch.zeros(logits_KBC.shape[:2])})


@dataclass(frozen=True)
class Weightless(Objective):
    """Cross-entropy of weight 0."""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        loss_KB = CrossEntropy().terms(logits_KBC, targets_B).loss_KB
        return Terms(0 * loss_KB, {"weight": torch.zeros_like(loss_KB)})


@pytest.mark.parametrize("objective", [Nothing(), Weightless()], ids=str)
def test_without_a_gradient_or_a_weight_nothing_is_pushed(objective: Objective):
    assert torch.equal(objective.push(*batch(), {}), torch.zeros(3, 64))


@pytest.mark.parametrize("objective", [CrossEntropy(), PowerSqrt(), Squared()], ids=str)
def test_a_share_without_images_has_nothing_to_push(objective: Objective):
    logits_KBC, targets_B = torch.randn(3, 0, 5), torch.zeros(0, dtype=torch.int64)
    stats_KB = objective.terms(logits_KBC, targets_B).stats_KB
    assert objective.push(logits_KBC, targets_B, stats_KB).shape == (3, 0)


def test_bf16_logits_are_differentiated_in_float32():
    logits_KBC, targets_B = batch()
    logits_KBC = logits_KBC.bfloat16()
    found_KB = Objective.push(CrossEntropy(), logits_KBC, targets_B, {})
    assert found_KB.dtype == torch.float32
    torch.testing.assert_close(found_KB, CrossEntropy().push(logits_KBC, targets_B, {}), rtol=1e-4, atol=1e-6)
