"""Evaluation: `record` a network's logits on a data set once, then ask. Everything but `record` is arithmetic on it."""

from offramp.evaluation.anytime import Anytime, ExitFigures, anytime
from offramp.evaluation.calibration import Reliability, reliability
from offramp.evaluation.damping import DampingFigures
from offramp.evaluation.record import Record, record, recorded, weights_hash

__all__ = [
    "Anytime",
    "DampingFigures",
    "ExitFigures",
    "Record",
    "Reliability",
    "anytime",
    "record",
    "recorded",
    "reliability",
    "weights_hash",
]
