"""The textbook's MSDNet and RANet, which stand with the tests: what "plain" means in every benchmark."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "backbones"))

from plain import PlainMSDNet, PlainRANet, copy_weights, train_step  # type: ignore[import-not-found]

__all__ = ["PlainMSDNet", "PlainRANet", "copy_weights", "train_step"]
