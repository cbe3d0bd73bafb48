"""What objectives share: numbers of float32 at least, and whether an objective fits a network."""

import pytest

from offramp.errors import UsageError
from offramp.objectives import Damping, LabelSmoothing, PowerSqrt, check_fits


@pytest.mark.parametrize("objective", [Damping(), PowerSqrt()])
def test_damping_without_a_neuron_is_refused_with_the_way_out(objective: Damping | PowerSqrt):
    with pytest.raises(UsageError, match=r"needs the damping neuron.*damping=True"):
        check_fits(objective, damping=False)
    check_fits(objective, damping=True)


def test_label_smoothing_with_a_neuron_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"takes no damping neuron.*damping=False"):
        check_fits(LabelSmoothing(), damping=True)
    check_fits(LabelSmoothing(), damping=False)
