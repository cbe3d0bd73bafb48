"""The power-sqrt loss: Eq. 4, its separable form, and its corners. K exits, B images, C = N + 1 outputs."""

import pytest
import torch
from torch import Tensor

from offramp.objectives import Damping, Objective, PowerSqrt

NEURON_CERTAIN = [-1e4, -1e4, -1e4, -1e4, 1e4]  # F[N+1] is exactly 1 in floating point: a = 0
NEURON_GONE = [1e4, -1e4, -1e4, -1e4, -1e4]


def _batch(K: int, B: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(K, B, 5, dtype=dtype), torch.randint(4, (B,))


def _loss_and_gradient(objective: Objective, logits_KBC: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits_KBC.clone().requires_grad_()
    loss = objective(leaf, targets_B)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def _equation_4(logits_KBC: Tensor, targets_B: Tensor, strength: float, root: str) -> Tensor:
    """As the paper writes it, differentiated through the root."""
    log_F_KBC = logits_KBC.log_softmax(-1)
    cross_entropy = sum(-log_F_BC[range(len(targets_B)), targets_B].mean() for log_F_BC in log_F_KBC)
    a_KB = -log_F_KBC[..., -1]
    if root == "sample":
        return cross_entropy + strength * a_KB.square().sum(0).sqrt().mean()
    return cross_entropy + strength * a_KB.mean(1).square().sum().sqrt()


@pytest.mark.parametrize("root", ["sample", "batch"])
@pytest.mark.parametrize("K", [1, 2, 7])
def test_the_separable_form_has_the_value_and_the_gradient_of_equation_4(K: int, root: str):
    logits_KBC, targets_B = _batch(K)
    loss, gradient_KBC = _loss_and_gradient(PowerSqrt(0.3, root=root), logits_KBC, targets_B)
    leaf = logits_KBC.clone().requires_grad_()
    naive = _equation_4(leaf, targets_B, 0.3, root)
    torch.testing.assert_close(loss, naive.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient_KBC, torch.autograd.grad(naive, leaf)[0], rtol=1e-11, atol=1e-15)


def test_the_printed_oracle():
    logits_KBC = torch.tensor(
        [[[2, 0.5, -1, 0], [0, 1, 0.5, -2]], [[3, -1, 0, -0.5], [-1, 2.5, 0, -1.5]]], dtype=torch.float64
    )
    targets_B = torch.tensor([0, 1])
    loss, gradient_KBC = _loss_and_gradient(PowerSqrt(0.005), logits_KBC, targets_B)
    expected_KBC = [
        [[-0.143981, 0.079439, 0.017725, 0.046817], [0.091174, -0.252163, 0.150321, 0.010668]],
        [[-0.042844, 0.008373, 0.022760, 0.011711], [0.013404, -0.056112, 0.036437, 0.006271]],
    ]
    assert loss.item() == pytest.approx(0.6565984605, abs=5e-11)
    torch.testing.assert_close(gradient_KBC, torch.tensor(expected_KBC).double(), atol=6e-7, rtol=0)
    assert Damping(0.005)(logits_KBC, targets_B).item() == pytest.approx(0.6664266186, abs=5e-11)
    a_KB = PowerSqrt().terms(logits_KBC, targets_B).stats_KB["a"]
    assert a_KB.tolist() == [
        pytest.approx([2.342350, 3.705173], abs=6e-7),
        pytest.approx([3.593764, 4.122747], abs=6e-7),
    ]


def test_the_coefficients_that_the_papers_table_5_implies():
    """From its averages of F[N+1] under power-sqrt: shallow exits are damped almost twice as much as deep ones."""
    F_K = torch.tensor([0.002, 0.003, 0.006, 0.012, 0.024, 0.036, 0.037], dtype=torch.float64)
    coefficients = PowerSqrt(1).damping(-F_K.log().unsqueeze(1)).squeeze(1).tolist()
    assert coefficients == pytest.approx([0.50, 0.47, 0.41, 0.36, 0.30, 0.27, 0.27], abs=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_one_exit_it_is_damping_to_the_last_bit_also_where_the_neuron_is_certain(dtype: torch.dtype):
    logits_KBC, targets_B = _batch(1, B=300, dtype=dtype)
    logits_KBC[0, :2] = torch.tensor([NEURON_CERTAIN, NEURON_GONE], dtype=dtype)
    ours = PowerSqrt(0.03).terms(logits_KBC, targets_B)
    assert ours.stats_KB["a"][0, 0] == 0
    theirs = Damping(0.03).terms(logits_KBC, targets_B)
    assert torch.equal(ours.loss_KB, theirs.loss_KB)
    assert torch.equal(ours.stats_KB["gamma"], theirs.stats_KB["gamma"])
    gradients = [
        _loss_and_gradient(objective, logits_KBC, targets_B)[1] for objective in (PowerSqrt(0.03), Damping(0.03))
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("root", ["sample", "batch"])
def test_where_the_neuron_is_certain_at_every_exit_the_damping_is_shared_equally(root: str):
    logits_KBC = torch.tensor(NEURON_CERTAIN).expand(4, 3, 5)
    terms = PowerSqrt(0.2, root=root).terms(logits_KBC, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(terms.stats_KB["gamma"], torch.full((4, 3), 0.1))
    _, gradient_KBC = _loss_and_gradient(PowerSqrt(0.2, root=root), logits_KBC, torch.tensor([0, 1, 2]))
    assert gradient_KBC.isfinite().all()


def test_where_the_neuron_is_certain_at_one_exit_that_exit_is_not_damped():
    logits_KBC = torch.tensor([[NEURON_CERTAIN], [NEURON_GONE]])
    gamma_KB = PowerSqrt(0.2).terms(logits_KBC, torch.tensor([0])).stats_KB["gamma"]
    torch.testing.assert_close(gamma_KB, torch.tensor([[0.0], [0.2]]))
