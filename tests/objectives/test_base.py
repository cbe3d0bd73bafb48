"""What objectives share: numbers of float32 at least, and whether an objective fits a network."""

import pytest
import torch

from offramp.errors import UsageError
from offramp.objectives import CrossEntropy, Damping, LabelSmoothing, PowerSqrt, check_fits
from offramp.objectives.base import log_softmax, pick


def test_log_softmax_is_float32_at_least():
    logits_KBC = torch.randn(2, 3, 4)
    assert log_softmax(logits_KBC.half()).dtype == torch.float32
    assert log_softmax(logits_KBC.bfloat16()).dtype == torch.float32
    assert log_softmax(logits_KBC.double()).dtype == torch.float64
    torch.testing.assert_close(log_softmax(logits_KBC).exp().sum(-1), torch.ones(2, 3))


def test_pick_takes_each_samples_own_class():
    values_KBC = torch.arange(24.0).view(2, 3, 4)
    assert pick(values_KBC, torch.tensor([3, 0, 1])).tolist() == [[3.0, 4.0, 9.0], [15.0, 16.0, 21.0]]


@pytest.mark.parametrize("objective", [Damping(), PowerSqrt()])
def test_damping_without_a_neuron_is_refused_with_the_way_out(objective: Damping | PowerSqrt):
    with pytest.raises(UsageError, match=r"needs the damping neuron.*damping=True"):
        check_fits(objective, damping=False)
    check_fits(objective, damping=True)


def test_label_smoothing_with_a_neuron_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"takes no damping neuron.*damping=False"):
        check_fits(LabelSmoothing(), damping=True)
    check_fits(LabelSmoothing(), damping=False)


@pytest.mark.parametrize("damping", [True, False])
def test_cross_entropy_fits_every_network(damping: bool):
    assert check_fits(CrossEntropy(), damping=damping) is None
