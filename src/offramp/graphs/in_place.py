"""What changes tensors in place, in graphs of `torch.fx`: one list for all that drops, moves or repeats steps."""

import inspect
import operator

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from offramp.network import runs_in_turn

_OPERATORS = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift", "setitem"),
)
_FUNCTIONS = frozenset(getattr(operator, name) for name in _OPERATORS)
_METHODS = frozenset(f"__{name}__" for name in _OPERATORS)
# What is sure to make a tensor of its own: modules; functions and methods.
_MAKERS = (_ConvNd, nn.Linear, _BatchNorm)
_MAKING = ("clone", torch.clone, torch.cat, nn.functional.conv2d, nn.functional.linear, nn.functional.batch_norm)


def changes_in_place(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether a node is known to change a tensor that it reads, whether or not its result is read.

    Functions and methods are known by their names (`relu_`), arguments (`inplace`, `out`) or as operators (`x[0] = 1`);
    a module that it calls, by its attribute `inplace`.
    """
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    by_name = name.endswith("_") and not name.endswith("__")
    by_operator = node.target in _FUNCTIONS or (node.op == "call_method" and name in _METHODS)
    return by_name or by_operator or node.kwargs.get("out") is not None or _is_asked_for(node)


def _is_asked_for(node: fx.Node) -> bool:
    """Whether the argument `inplace` is set, by name, place or default."""
    if "inplace" in node.kwargs or node.op != "call_function":
        return bool(node.kwargs.get("inplace"))
    assert callable(node.target)
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # torch's own functions do not say what they take; none of them takes it
        return False
    bound.apply_defaults()
    return bool(bound.arguments.get("inplace"))


def makes_own(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether what a node gives is sure to be a new tensor; `module` as for `changes_in_place`."""
    return node.target in _MAKING if module is None else _module_makes_own(module)


def _module_makes_own(module: nn.Module) -> bool:
    if runs_in_turn(module):
        return any(map(_module_makes_own, module.children()))
    return _is_of_torch(module) and isinstance(module, _MAKERS)


def may_write(module: nn.Module) -> bool:
    """Whether a module may write into its input; any that is not torch's may."""
    if not runs_in_turn(module):
        return bool(getattr(module, "inplace", False)) or not _is_of_torch(module)
    for layer in module.children():
        if may_write(layer):
            return True
        if _module_makes_own(layer):
            return False
    return False


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
