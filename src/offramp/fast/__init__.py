"""Networks in a form that trains faster: derived from the modules, equal to them, never written by hand."""

from offramp.fast.form import FormName, Merged, training_form
from offramp.fast.graphs import Graphs
from offramp.fast.kernels import Compiled, Kernels, Library

__all__ = ["Compiled", "FormName", "Graphs", "Kernels", "Library", "Merged", "training_form"]
