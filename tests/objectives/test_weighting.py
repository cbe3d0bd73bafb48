"""Dynamic weights: the readings R1 to R4, their range, direction, constancy. K exits, B images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from offramp import processes
from offramp.errors import UsageError
from offramp.objectives import DynamicWeights, PowerSqrt

NORMALISATIONS = ["max", "min-max", "tanh", "centre", "centre-clipped"]
every_normalisation = pytest.mark.parametrize("normalisation", NORMALISATIONS)
either_range = pytest.mark.parametrize("over", ["exits", "batch"])
damping_values = st.tuples(st.integers(1, 6), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0, 30))
)


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("max", [1.8, 0.9, 0.3]),
        ("min-max", [1.8, 0.84, 0.2]),
        ("tanh", [1.696049, 0.867888, 0.341439]),
        ("centre", [1 + 0.8 * 4 / 3, 1 - 0.8 / 6, 1 - 0.8 * 7 / 6]),
        ("centre-clipped", [1.8, 1 - 0.8 / 6, 0.2]),
    ],
)
def test_the_printed_weights(normalisation: str, expected: list[float]):
    a_KB = torch.tensor([[5.5], [4.0], [3.0]], dtype=torch.float64)
    weight_KB = DynamicWeights(normalisation=normalisation).weights(a_KB)
    torch.testing.assert_close(weight_KB.squeeze(1), torch.tensor(expected).double(), rtol=0, atol=6e-7)


def test_the_weights_that_the_papers_table_5_implies():
    """From its averages of F[N+1] under dynamic training: the shallow exits get the large weights."""
    F_K = torch.tensor([0.004, 0.006, 0.010, 0.019, 0.031, 0.049, 0.044], dtype=torch.float64)
    weights = DynamicWeights().weights(-F_K.log().unsqueeze(1)).squeeze(1).tolist()
    assert weights == pytest.approx([1.80, 1.57, 1.28, 0.91, 0.63, 0.37, 0.43], abs=5e-3)


@either_range
@every_normalisation
@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=damping_values, alpha=st.floats(0, 1))
def test_weights_stay_within_alpha_of_1_and_grow_with_a(normalisation: str, over: str, values, alpha: float):
    a_KB = torch.from_numpy(values)
    weight_KB = DynamicWeights(alpha=alpha, normalisation=normalisation, over=over).weights(a_KB)
    if normalisation != "centre":
        assert (weight_KB - 1).abs().max() <= alpha + 1e-12
    order_KB = a_KB.argsort(dim=0)
    assert (weight_KB.gather(0, order_KB).diff(dim=0) >= -1e-12).all()


def test_max_has_mean_1_and_reaches_a_bound_over_what_it_runs():
    a_KB = torch.rand(5, 7, dtype=torch.float64)
    over_exits, over_batch = (DynamicWeights(over=over).weights(a_KB) for over in ("exits", "batch"))
    torch.testing.assert_close(over_exits.mean(0), torch.ones(7).double())
    torch.testing.assert_close((over_exits - 1).abs().amax(0), torch.full((7,), 0.8).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(over_batch.mean(), torch.tensor(1.0).double())
    assert (over_batch - 1).abs().max().item() == pytest.approx(0.8, rel=1e-15)


@every_normalisation
def test_min_max_reaches_both_bounds_and_tanh_neither(normalisation: str):
    weight_KB = DynamicWeights(normalisation=normalisation).weights(torch.tensor([[1.0], [1.1], [1.3]]))
    lowest, highest = weight_KB.aminmax()
    if normalisation == "min-max":
        assert (lowest.item(), highest.item()) == pytest.approx((0.2, 1.8))
    elif normalisation != "max":
        assert lowest > 0.8
        assert highest < 1.2
    else:
        assert highest.item() == pytest.approx(1.8)
        assert lowest > 0.3


@either_range
@pytest.mark.parametrize("normalisation", ["centre", "centre-clipped"])
def test_centred_weights_are_those_of_plain_loops(normalisation: str, over: str):
    """1 + alpha (a - mean a), some of them below 0; cut off, none is further from 1 than alpha."""
    a_KB = 3 * torch.randn(4, 5, dtype=torch.float64).abs()
    weight_KB = DynamicWeights(alpha=0.7, normalisation=normalisation, over=over).weights(a_KB)
    values = a_KB.tolist()
    for b in range(5):
        seen = [row[b] for row in values] if over == "exits" else [value for row in values for value in row]
        for k in range(4):
            shift = 0.7 * (values[k][b] - sum(seen) / len(seen))
            wanted = 1 + (shift if normalisation == "centre" else max(-0.7, min(0.7, shift)))
            assert weight_KB[k, b].item() == pytest.approx(wanted, rel=1e-13, abs=1e-14)
    assert (weight_KB < 0).any().item() == (normalisation == "centre")
    assert (weight_KB == 1.7).any().item() == (normalisation == "centre-clipped")


@every_normalisation
def test_over_the_exits_no_sample_sees_another(normalisation: str):
    a_KB = torch.rand(3, 6)
    weights = DynamicWeights(normalisation=normalisation).weights
    one_by_one = torch.cat([weights(a_KB[:, b : b + 1]) for b in range(6)], dim=1)
    torch.testing.assert_close(weights(a_KB), one_by_one, rtol=0, atol=1e-7)


@pytest.mark.parametrize("with_gradient", [False, True])
@either_range
@every_normalisation
def test_exits_that_agree_up_to_rounding_all_weigh_1(normalisation: str, over: str, with_gradient: bool):
    """Near the start all exits have a = ln(N + 1); rounding must not swing their weights by alpha."""
    a_KB = torch.full((7, 4), 101.0).log() * (1 + torch.finfo(torch.float32).eps * torch.randint(-2, 3, (7, 4)))
    a_KB.requires_grad_()
    weights = DynamicWeights(normalisation=normalisation, over=over, with_gradient=with_gradient)
    weight_KB = weights.weights(a_KB)
    torch.testing.assert_close(weight_KB, torch.ones(7, 4), rtol=0, atol=2e-6)
    if with_gradient:
        (gradient_KB,) = torch.autograd.grad((weight_KB * torch.rand(7, 4)).sum(), a_KB)
        assert gradient_KB.isfinite().all()


@either_range
@every_normalisation
def test_with_one_exit_every_weight_is_1(normalisation: str, over: str):
    weight_KB = DynamicWeights(normalisation=normalisation, over=over).weights(torch.rand(1, 5))
    assert torch.equal(weight_KB, torch.ones(1, 5))


@either_range
@every_normalisation
def test_reverse_mirrors_the_weights_at_1(normalisation: str, over: str):
    a_KB = torch.rand(4, 5, dtype=torch.float64)
    weight_KB, mirrored_KB = (
        DynamicWeights(normalisation=normalisation, over=over, reverse=reverse).weights(a_KB)
        for reverse in (False, True)
    )
    torch.testing.assert_close(mirrored_KB, 2 - weight_KB, rtol=1e-14, atol=0)


def _naive_weights(a_KB: Tensor, normalisation: str, over: str) -> Tensor:
    v = a_KB if over == "exits" else a_KB.reshape(1, -1)
    axis = 0 if over == "exits" else 1
    center = v - v.mean(axis, keepdim=True)
    low, high = v.amin(axis, keepdim=True), v.amax(axis, keepdim=True)
    w = {
        "max": lambda: center / center.abs().amax(axis, keepdim=True),
        "min-max": lambda: 2 * (v - low) / (high - low) - 1,
        "tanh": lambda: center.tanh(),
        "centre": lambda: center,
        "centre-clipped": lambda: torch.where(center.abs() < 1, center, center.sign()),
    }[normalisation]()
    return (1 + 0.8 * w).view_as(a_KB)


@either_range
@every_normalisation
def test_with_gradient_differentiates_the_normalisation_too(normalisation: str, over: str):
    a_KB = (3 * torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    factor_KB = torch.rand(4, 3, dtype=torch.float64)
    ours = DynamicWeights(normalisation=normalisation, over=over, with_gradient=True).weights(a_KB)
    naive = _naive_weights(a_KB, normalisation, over)
    torch.testing.assert_close(ours, naive, rtol=1e-13, atol=0)
    gradients = [torch.autograd.grad((weight * factor_KB).sum(), a_KB)[0] for weight in (ours, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


@either_range
@every_normalisation
def test_weights_are_constants_unless_asked(normalisation: str, over: str):
    """The loss's gradient is that of the same shares under weights typed in as numbers; with gradient it is not."""
    logits_KBC = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    targets_B = torch.tensor([0, 1, 4])
    gradients = {}
    for with_gradient in (False, True):
        weighting = DynamicWeights(normalisation=normalisation, over=over, with_gradient=with_gradient)
        loss = PowerSqrt(0.1, weighting=weighting)(logits_KBC, targets_B)
        (gradients[with_gradient],) = torch.autograd.grad(loss, logits_KBC)
    log_F_KBC = logits_KBC.log_softmax(-1)
    a_KB = -log_F_KBC[..., -1]
    weight_KB = _naive_weights(a_KB, normalisation, over).detach()
    bracket_KB = (a_KB / a_KB.square().sum(0).sqrt()).detach()
    shares_KB = weight_KB * (-log_F_KBC[:, torch.arange(3), targets_B] + 0.1 * bracket_KB * a_KB)
    (expected_KBC,) = torch.autograd.grad(shares_KB.mean(1).sum(), logits_KBC)
    torch.testing.assert_close(gradients[False], expected_KBC, rtol=1e-11, atol=1e-15)
    assert (gradients[True] - expected_KBC).abs().max() > 1e-3


def test_weights_over_the_batch_with_gradient_are_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "active", lambda: True)
    with pytest.raises(UsageError, match=r"one process only; use over='exits'"):
        DynamicWeights(over="batch", with_gradient=True).weights(torch.rand(3, 2))
