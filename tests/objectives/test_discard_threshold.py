"""Discarding the gradients of samples that are already sure."""

import pytest
import torch

from offramp.errors import UsageError
from offramp.objectives import CrossEntropy, DiscardThreshold


def test_discarded_samples_get_no_gradient_and_the_others_theirs_unchanged():
    logits_KBC = (3 * torch.randn(2, 200, 4, dtype=torch.float64)).requires_grad_()
    targets_B = torch.randint(4, (200,))
    (plain_KBC,) = torch.autograd.grad(CrossEntropy()(logits_KBC, targets_B), logits_KBC)
    (gradient_KBC,) = torch.autograd.grad(DiscardThreshold(0.8)(logits_KBC, targets_B), logits_KBC)
    sure_KB = logits_KBC.softmax(-1)[:, torch.arange(200), targets_B] > 0.8
    assert 0 < sure_KB.sum() < sure_KB.numel()
    assert (gradient_KBC[sure_KB] == 0).all()
    torch.testing.assert_close(gradient_KBC[~sure_KB], plain_KBC[~sure_KB], rtol=1e-14, atol=0)
    off_KB = DiscardThreshold(0.8).terms(logits_KBC, targets_B).stats_KB["off_or_reversed"]
    torch.testing.assert_close(off_KB, sure_KB.double())


def test_the_mean_divides_by_the_whole_batch():
    logits_KBC = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]])  # the first sample is sure, the second undecided
    loss = DiscardThreshold(0.9)(logits_KBC, torch.tensor([0, 0]))
    torch.testing.assert_close(loss, torch.tensor(2.0).log() / 2)


def test_threshold_1_is_plain_training_also_for_certain_samples():
    logits_KBC = torch.randn(3, 64, 5)
    logits_KBC[:, ::2] = torch.tensor([19.0, 0.0, 0.0, 0.0, 0.0])  # F[y] rounds to 1; other classes still get gradient
    leaves = [logits_KBC.clone().requires_grad_() for _ in range(2)]
    targets_B = torch.zeros(64, dtype=torch.int64)
    losses = [DiscardThreshold(1)(leaves[0], targets_B), CrossEntropy()(leaves[1], targets_B)]
    torch.stack(losses).sum().backward()
    assert losses[0] == losses[1]
    assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("threshold", [0, 1.1, -0.5, float("nan"), "sure"])
def test_a_threshold_outside_its_range_is_refused(threshold: float):
    with pytest.raises(UsageError, match=r"threshold must be a number in \(0, 1\]"):
        DiscardThreshold(threshold)
