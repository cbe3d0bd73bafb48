"""`offramp names`: what `offramp train` can be asked for."""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offramp import registry
from offramp.commands.options import Options
from offramp.terminal import Screen


@dataclass(frozen=True, kw_only=True)
class NamesOptions(Options):
    """List data sets, networks, objectives and rules.

    By name, with their arguments and defaults.
    """

    def main(self) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        listed = {
            option: {name: arguments(builder) for name, builder in known.items()}
            for option, known in registered().items()
        }
        if self.json:
            print(json.dumps(listed))
            return
        for option, known in listed.items():
            table = Table(box=SIMPLE_HEAD, pad_edge=False)
            table.add_column(option, no_wrap=True)
            table.add_column("arguments")
            for name, settings in known.items():
                table.add_row(name, Text(settings))
            Screen().print(table)


def registered() -> dict[str, Mapping[str, Callable[..., Any]]]:
    """What stands behind every name, by the option of `offramp train` that takes it."""
    from offramp.backbones import NETWORKS

    return {
        "--data": registry.load(registry.DATA),
        "--network": NETWORKS,
        "--objective": registry.load(registry.OBJECTIVES),
        "--rule": registry.load(registry.RULES),
    }


def arguments(builder: Callable[..., Any]) -> str:
    """`strength=0.005 root='mean'`: parameters with their defaults; of a preset, what it sets of which backbone."""
    if isinstance(builder, functools.partial):
        return f"{builder.func.__name__} with {' '.join(f'{key}={value!r}' for key, value in builder.keywords.items())}"
    parameters = inspect.signature(builder).parameters.values()
    shown = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    return " ".join(shown)
