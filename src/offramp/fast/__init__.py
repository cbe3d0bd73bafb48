"""Networks in a form that trains faster: derived from the modules, equal to them, never written by hand."""

from offramp.fast.form import Merged
from offramp.fast.kernels import Compiled, Kernels, Library

__all__ = ["Compiled", "Kernels", "Library", "Merged"]
