import pytest

from offramp.errors import UsageError
from offramp.paper.scales import PAPER, SCALES, scale


def test_a_longer_study_is_another() -> None:
    longer = PAPER.times(10)
    assert longer.name == "paper-x10"
    assert longer.papers  # its data and networks
    assert PAPER.comparable
    assert not longer.comparable
    assert longer["cifar100"].epochs == 3000
    assert longer.about.startswith("10 times the epochs of the scale paper, which is: ")
    assert longer.times(2).factor == 20
    assert PAPER.times(1) is PAPER


def test_scales_by_name() -> None:
    with pytest.raises(UsageError, match="Unknown scale 'poket'"):
        scale("poket")
    with pytest.raises(UsageError, match="is a dict, not an"):
        scale("offramp.paper:SCALES")
    assert scale("offramp.paper.scales:POCKET") is SCALES["pocket"]
    with pytest.raises(UsageError, match="times must be at least 1"):
        PAPER.times(0)
