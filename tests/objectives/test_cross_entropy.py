"""Plain cross-entropy."""

import torch
from torch.nn.functional import cross_entropy

from offramp.objectives import CrossEntropy


def test_it_is_the_librarys_cross_entropy_summed_over_exits():
    logits_KBC, targets_B = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 1, 1])
    expected = sum(cross_entropy(logits_BC, targets_B) for logits_BC in logits_KBC)
    torch.testing.assert_close(CrossEntropy()(logits_KBC, targets_B), expected, rtol=1e-14, atol=0)


def test_it_reports_the_softmax_of_the_true_class():
    logits_KBC, targets_B = torch.randn(3, 5, 4), torch.tensor([0, 3, 2, 1, 1])
    true_KB = CrossEntropy().terms(logits_KBC, targets_B).stats_KB["F_true"]
    torch.testing.assert_close(true_KB, logits_KBC.softmax(-1)[:, torch.arange(5), targets_B])
