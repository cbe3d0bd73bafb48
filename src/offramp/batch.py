"""What a step of training is given."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """This process's share of one global batch of B images; it may be empty."""

    images_BCHW: Tensor
    """float32, normalised."""
    targets_B: Tensor
    """Classes, int64."""
    indices_B: Tensor
    """Positions in the official training or test set, int64."""
    size: int
    """Images of the global batch, over all processes."""
