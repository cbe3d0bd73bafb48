"""The damping loss. K exits, B images, C = N + 1 outputs."""

import math

import pytest
import torch

from offramp.errors import UsageError
from offramp.objectives import CrossEntropy, Damping, DynamicWeights

TARGETS_B = torch.tensor([0, 3, 2, 1, 1])


def _logits() -> torch.Tensor:
    return torch.randn(3, 5, 5, dtype=torch.float64, requires_grad=True)


def test_one_strength_per_exit_is_equation_3():
    logits_KBC, strengths = _logits(), (0.1, 0.0, 0.03)
    loss = Damping(strengths)(logits_KBC, TARGETS_B)
    log_F_KBC = logits_KBC.log_softmax(-1)
    naive = sum(
        -log_F_BC[range(5), TARGETS_B].mean() + strength * -log_F_BC[:, -1].mean()
        for log_F_BC, strength in zip(log_F_KBC, strengths, strict=True)
    )
    torch.testing.assert_close(loss, naive, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad(value, logits_KBC, retain_graph=True)[0] for value in (loss, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_per_sqrt_exits_divides_the_strength_by_the_root_of_the_number_of_exits():
    logits_KBC = _logits()
    control = Damping(0.06, per_sqrt_exits=True).terms(logits_KBC, TARGETS_B)
    divided = Damping(0.06 / math.sqrt(3)).terms(logits_KBC, TARGETS_B)
    torch.testing.assert_close(control.loss_KB, divided.loss_KB, rtol=1e-14, atol=0)
    torch.testing.assert_close(control.stats_KB, divided.stats_KB, rtol=1e-14, atol=0)


def test_strength_0_is_cross_entropy_over_all_outputs():
    logits_KBC = _logits()
    assert Damping(0)(logits_KBC, TARGETS_B) == CrossEntropy()(logits_KBC, TARGETS_B)


def test_another_number_of_strengths_than_exits_is_refused():
    with pytest.raises(UsageError, match="2 values for 3 exits"):
        Damping((0.1, 0.2))(_logits(), TARGETS_B)


def test_weighting_the_cross_entropy_alone_leaves_the_damping_as_it_is():
    logits_KBC = _logits()
    weighting = DynamicWeights(applied_to="cross-entropy")
    terms = Damping(0.1, weighting=weighting).terms(logits_KBC, TARGETS_B)
    plain = CrossEntropy().terms(logits_KBC, TARGETS_B)
    expected_KB = terms.stats_KB["weight"] * plain.loss_KB + 0.1 * terms.stats_KB["a"]
    torch.testing.assert_close(terms.loss_KB, expected_KB, rtol=1e-13, atol=0)
