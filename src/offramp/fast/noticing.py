"""What a traced module takes for granted: when any of it is another, it has to be traced anew."""

import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

SETTINGS: Mapping[type[nn.Module], tuple[str, ...]] = {  # of a unit's modules
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("eps", "momentum", "track_running_stats"),
}
_OF_ALL = frozenset(vars(nn.Module()))  # names of what every module holds, such as its hooks


def plain_values(module: nn.Module) -> dict[str, Any]:
    """What is set on a module and is a value: a number, a string, None, a tuple or a list; in the order of names."""
    held = vars(module)
    own = sorted(held.keys() - _OF_ALL)
    return {name: held[name] for name in own if isinstance(held[name], bool | int | float | str | tuple | list | None)}


def made_of(modules: Iterable[nn.Module]) -> list[Any]:
    """What modules are, their own parameters and modules, their modes, and what is set on them: compare by `is_same`.

    torch's own are called as they are by whatever has been traced, so that of theirs only those settings matter that a
    unit has read, or that say who writes into what. Others' code has been traced with the values that it found.
    """
    return [item for module in modules for item in _made_of(module)]


def is_same(before: list[Any], now: list[Any]) -> bool:
    """Whether modules are made of the same."""
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _made_of(module: nn.Module) -> list[Any]:
    kind = type(module)
    own = [kind, module.training, *module._parameters.values(), *module._modules.values()]
    if kind.__module__.startswith("torch.nn."):
        return [*own, vars(module).get("inplace"), *(getattr(module, name) for name in SETTINGS.get(kind, ()))]
    return [*own, sys.intern(str(plain_values(module)))]  # of equal ones there is one, as long as it is kept
