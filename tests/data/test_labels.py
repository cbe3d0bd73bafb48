import numpy as np
import pytest

from offramp.data.labels import check_labels
from offramp.errors import OfframpError, UsageError


def test_the_first_label_outside_is_named() -> None:
    with pytest.raises(OfframpError, match="train: the label at index 2 is 7, but the classes are 0 to 4"):
        check_labels(np.array([0, 4, 7, 9]), 5, "train", OfframpError)
    with pytest.raises(UsageError, match="the label at index 1 is -1"):
        check_labels(np.array([0, -1]), 5, "labels", UsageError)


def test_labels_inside_pass() -> None:
    assert check_labels(np.array([0, 4]), 5, "train", OfframpError) is None
