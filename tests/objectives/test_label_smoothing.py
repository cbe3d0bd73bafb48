"""Label smoothing."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from offramp.objectives import CrossEntropy, LabelSmoothing

TARGETS_B = torch.tensor([0, 3, 2, 1, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_it_is_the_librarys_smoothing_in_value_and_gradient(smoothing: float):
    logits_KBC = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    ours = LabelSmoothing(smoothing)(logits_KBC, TARGETS_B)
    theirs = sum(cross_entropy(logits_BC, TARGETS_B, label_smoothing=smoothing) for logits_BC in logits_KBC)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    gradients = [torch.autograd.grad(loss, logits_KBC)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_smoothing_0_is_cross_entropy():
    logits_KBC = torch.randn(3, 5, 4)
    assert LabelSmoothing(0)(logits_KBC, TARGETS_B) == CrossEntropy()(logits_KBC, TARGETS_B)


def test_off_or_reversed_is_where_the_gradient_on_the_true_class_is_not_negative():
    logits_KBC = (4 * torch.randn(3, 200, 4, dtype=torch.float64)).requires_grad_()
    targets_B = torch.randint(4, (200,))
    terms = LabelSmoothing(0.3).terms(logits_KBC, targets_B)
    (gradient_KBC,) = torch.autograd.grad(terms.loss_KB.sum(), logits_KBC)
    off_KB = gradient_KBC[:, torch.arange(200), targets_B] >= 0
    assert 0 < off_KB.sum() < off_KB.numel()
    torch.testing.assert_close(terms.stats_KB["off_or_reversed"], off_KB.double())
