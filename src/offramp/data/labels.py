"""The check every data set's labels pass when it is loaded."""

import numpy as np

from offramp.data.randomness import IntArray


def check_labels(labels_S: IntArray, num_classes: int, where: str, error: type[Exception]) -> None:
    """Refuse labels outside `[0, num_classes)`, naming the first and its position in `where`."""
    wrong = np.flatnonzero((labels_S < 0) | (labels_S >= num_classes))
    if len(wrong):
        index = int(wrong[0])
        raise error(
            f"{where}: the label at index {index} is {labels_S[index]}, but the classes are 0 to {num_classes - 1}."
        )
