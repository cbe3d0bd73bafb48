"""What stands in a run's folder (`RunFolder` lists it), and how to read it back."""

import importlib
from typing import TYPE_CHECKING, Any

from offramp.files.asked import is_finished, keep_asked
from offramp.files.folder import CARD, FORMAT, OWNER, RunFolder, weights_of
from offramp.files.kinds import Ancestor, Clock, Division, Epoch, HeldOutImages, Origin, RunConfig, Start

if TYPE_CHECKING:
    from offramp.files.network import load, load_weights

__all__ = [
    "CARD",
    "FORMAT",
    "OWNER",
    "Ancestor",
    "Clock",
    "Division",
    "Epoch",
    "HeldOutImages",
    "Origin",
    "RunConfig",
    "RunFolder",
    "Start",
    "is_finished",
    "keep_asked",
    "load",
    "load_weights",
    "weights_of",
]


def __getattr__(name: str) -> Any:
    """What needs torch, when it is first used: files of a run can be read without."""
    if name in ("load", "load_weights"):
        return getattr(importlib.import_module("offramp.files.network"), name)
    raise AttributeError(f"module 'offramp.files' has no attribute {name!r}")
