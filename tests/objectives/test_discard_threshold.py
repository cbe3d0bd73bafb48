"""Discarding the gradients of samples that are already sure."""

import pytest
import torch

from offramp.errors import UsageError
from offramp.objectives import CrossEntropy, DiscardThreshold, describe


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


def test_the_other_mean_divides_by_those_that_an_exit_keeps():
    logits_KBC = (3 * torch.randn(3, 40, 4, dtype=torch.float64)).requires_grad_()
    logits_KBC.data[1] = 0  # exit 2 is never sure
    targets_B = torch.randint(4, (40,))
    objective = DiscardThreshold(0.8, mean="kept")
    naive = []
    for k in range(3):
        probs = logits_KBC[k].softmax(-1)[torch.arange(40), targets_B]
        kept = [-p.log() for p in probs if p <= 0.8]
        assert (len(kept) == 40) == (k == 1)
        naive.append(sum(kept) / len(kept))
    loss = objective(logits_KBC, targets_B)
    torch.testing.assert_close(loss, sum(naive), rtol=1e-13, atol=0)
    gradients = [torch.autograd.grad(value, logits_KBC, retain_graph=True)[0] for value in (loss, sum(naive))]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-15)


def test_an_exit_that_keeps_nothing_has_no_loss_and_a_finite_gradient():
    logits_KBC = torch.tensor([[[9.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]]], requires_grad=True)
    loss = DiscardThreshold(0.9, mean="kept")(logits_KBC, torch.tensor([0, 0]))
    torch.testing.assert_close(loss, torch.tensor(2.0).log())  # of the one that exit 2 keeps
    loss.backward()
    assert torch.equal(logits_KBC.grad[0], torch.zeros(2, 2))
    torch.testing.assert_close(logits_KBC.grad[1], torch.tensor([[-0.5, 0.5], [0.0, 0.0]]))


def test_a_run_of_before_there_were_two_means_is_described_as_it_was():
    assert describe(DiscardThreshold(0.7))["args"] == {"threshold": 0.7}
    assert describe(DiscardThreshold(0.7, mean="kept"))["args"] == {"threshold": 0.7, "mean": "kept"}
    with pytest.raises(UsageError, match=r"mean 'kep' is unknown\. Did you mean kept"):
        DiscardThreshold(mean="kep")


def test_threshold_1_is_plain_training_also_for_certain_samples():
    logits_KBC = torch.randn(3, 64, 5)
    logits_KBC[:, ::2] = torch.tensor([19.0, 0.0, 0.0, 0.0, 0.0])  # F[y] rounds to 1; other classes still get gradient
    leaves = [logits_KBC.clone().requires_grad_() for _ in range(2)]
    targets_B = torch.zeros(64, dtype=torch.int64)
    losses = [DiscardThreshold(1)(leaves[0], targets_B), CrossEntropy()(leaves[1], targets_B)]
    torch.stack(losses).sum().backward()
    assert losses[0] == losses[1]
    assert torch.equal(leaves[0].grad, leaves[1].grad)
