"""Propositions 1 and 2 over random logits. K exits, B images, C = N + 1 outputs; the last is the damping neuron."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from offramp.objectives import Damping, DynamicWeights, Objective, PowerSqrt

shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(3, 6))
logits = shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=st.floats(-15, 15))).map(torch.from_numpy)
strengths = st.floats(1e-4, 2)
labels = st.integers(0, 10**6)
quickly = settings(max_examples=60, deadline=None, derandomize=True)
both_losses = pytest.mark.parametrize("loss", [Damping, PowerSqrt])


def _terms_and_gradient(objective: Objective, logits_KBC: Tensor, label: int):
    """Terms, gradient of each sample's own loss, and the labels drawn from `label`."""
    targets_B = (label + torch.arange(logits_KBC.shape[1])) % (logits_KBC.shape[2] - 1)
    leaf = logits_KBC.clone().requires_grad_()
    terms = objective.terms(leaf, targets_B)
    (gradient_KBC,) = torch.autograd.grad(terms.loss_KB.sum(), leaf)
    return terms, gradient_KBC, targets_B


@both_losses
@quickly
@given(logits_KBC=logits, strength=strengths, label=labels)
def test_the_gradient_is_the_closed_form(loss: type, logits_KBC: Tensor, strength: float, label: int):
    """(1 + gamma) F[j] - 1{j = y} - gamma 1{j = N+1}: the damping part on the true class is gamma F[y]."""
    terms, gradient_KBC, targets_B = _terms_and_gradient(loss(strength), logits_KBC, label)
    gamma_KB = terms.stats_KB["gamma"]
    expected_KBC = (1 + gamma_KB).unsqueeze(-1) * logits_KBC.softmax(-1)
    expected_KBC[:, torch.arange(len(targets_B)), targets_B] -= 1
    expected_KBC[..., -1] -= gamma_KB
    torch.testing.assert_close(gradient_KBC, expected_KBC, rtol=1e-9, atol=1e-13)


@both_losses
@quickly
@given(logits_KBC=logits, strength=strengths, label=labels)
def test_proposition_1_the_true_class_is_no_longer_encouraged(
    loss: type, logits_KBC: Tensor, strength: float, label: int
):
    terms, gradient_KBC, targets_B = _terms_and_gradient(loss(strength), logits_KBC, label)
    reached_KB = terms.stats_KB["F_true"] - 1 / (1 + terms.stats_KB["gamma"])
    gradient_KB = gradient_KBC[:, torch.arange(len(targets_B)), targets_B]
    assert (gradient_KB[reached_KB >= 0] >= -1e-14).all()
    assert (gradient_KB[reached_KB < 0] <= 1e-14).all()
    assert torch.equal(terms.stats_KB["off_or_reversed"] == 1, reached_KB >= 0)


@both_losses
@quickly
@given(logits_KBC=logits, strength=strengths, label=labels)
def test_proposition_2_the_damping_neuron_is_no_longer_encouraged(
    loss: type, logits_KBC: Tensor, strength: float, label: int
):
    terms, gradient_KBC, _ = _terms_and_gradient(loss(strength), logits_KBC, label)
    gamma_KB = terms.stats_KB["gamma"]
    reached_KB = terms.stats_KB["F_damping"] - gamma_KB / (1 + gamma_KB)
    assert (gradient_KBC[..., -1][reached_KB >= 0] >= -1e-14).all()
    assert (gradient_KBC[..., -1][reached_KB < 0] <= 1e-14).all()


@pytest.mark.parametrize("K", [1, 3, 7])
@both_losses
def test_the_gradient_vanishes_at_the_stationary_point(loss: type, K: int):
    """F[y] = 1/(1 + gamma), F[N+1] = gamma/(1 + gamma), nothing elsewhere; power-sqrt: gamma = strength/sqrt(K)."""
    gamma = 0.05 / (math.sqrt(K) if loss is PowerSqrt else 1)
    logits_KBC = torch.tensor([0, -800, -800, math.log(gamma)], dtype=torch.float64).expand(K, 1, 4)
    _, gradient_KBC, _ = _terms_and_gradient(loss(0.05), logits_KBC, label=0)
    torch.testing.assert_close(gradient_KBC, torch.zeros_like(gradient_KBC), rtol=0, atol=1e-15)


@quickly
@given(logits_KBC=logits, strength=strengths, label=labels)
def test_power_sqrts_coefficients_lie_on_a_sphere_of_radius_strength(logits_KBC: Tensor, strength: float, label: int):
    terms, _, _ = _terms_and_gradient(PowerSqrt(strength), logits_KBC, label)
    gamma_KB = terms.stats_KB["gamma"]
    radius_B = gamma_KB.square().sum(0).sqrt()
    torch.testing.assert_close(radius_B, torch.full_like(radius_B, strength), rtol=1e-12, atol=0)
    assert (gamma_KB > 0).all()
    assert (gamma_KB <= strength * (1 + 1e-12)).all()


@pytest.mark.parametrize("applied_to", ["gradient", "cross-entropy", "root"])
@quickly
@given(logits_KBC=logits, strength=strengths, label=labels)
def test_under_weights_the_propositions_hold_with_the_reported_coefficient(
    applied_to: str, logits_KBC: Tensor, strength: float, label: int
):
    """Each exit's gradient is its weight times the closed form with `gamma`, wherever the weights act."""
    weighting = DynamicWeights(applied_to=applied_to)
    terms, gradient_KBC, targets_B = _terms_and_gradient(PowerSqrt(strength, weighting=weighting), logits_KBC, label)
    gamma_KB, weight_KB = terms.stats_KB["gamma"], terms.stats_KB["weight"]
    expected_KBC = (1 + gamma_KB).unsqueeze(-1) * logits_KBC.softmax(-1)
    expected_KBC[:, torch.arange(len(targets_B)), targets_B] -= 1
    expected_KBC[..., -1] -= gamma_KB
    torch.testing.assert_close(gradient_KBC, weight_KB.unsqueeze(-1) * expected_KBC, rtol=1e-9, atol=1e-12)
