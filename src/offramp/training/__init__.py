"""Training: one loop for every network, objective and rule, that survives being killed at any moment."""

from offramp.training.fit import fit, train
from offramp.training.signals import StoppedError

__all__ = ["StoppedError", "fit", "train"]
