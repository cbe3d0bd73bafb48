"""Training: one loop for every network, objective and rule, that survives being killed at any moment."""

from offramp.training.callbacks import Callback, MLflow, TensorBoard, WandB
from offramp.training.fit import fit, train
from offramp.training.signals import StoppedError

__all__ = ["Callback", "MLflow", "StoppedError", "TensorBoard", "WandB", "fit", "train"]
