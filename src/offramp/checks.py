"""Checks of arguments, and the words that refuse them: which one, what it must be, what it is."""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from offramp.errors import UsageError

PERCENT = "percent"  # a shape of JSON values, see `fault`: no accuracy is NaN, as a loss may be


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def check_counts(**values: Any) -> None:
    """Refuse what is not a whole number of at least 1."""
    for name, value in values.items():
        check_whole(name, value, 1)


def check_number(name: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    """Refuse what is no finite number or for which `holds` is false; `allowed` says so: "of at least 0"."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (is_number and holds(value)):
        raise UsageError(f"{name} must be a number {allowed}, not {value!r}.")


def check_size(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0."""
    check_number(name, value, "of at least 0", lambda value: value >= 0)


def check_flags(**values: Any) -> None:
    """Refuse what is neither True nor False: a word on the command line would count as True."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be true or false, not {value!r}.")


def check_name(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is none of the `known` words."""
    if value not in known:
        raise UsageError(f"{name} {value!r} is unknown.{did_you_mean(str(value), known)}")


@dataclass(frozen=True)
class Maybe:
    """The shape of what may be missing, or null."""

    shape: Any


def fault(value: Any, shape: Any, where: str = "") -> str | None:
    """What is wrong with a JSON value; None where it has the shape.

    A shape is a type (`float` takes whole numbers as well), a list of a shape, a dictionary of shapes by key (further
    keys do no harm), `{str: shape}` for any keys, `PERCENT` for a number from 0 to 100, a tuple of a shape if null will
    do, or `Maybe`.
    """
    if isinstance(shape, (tuple, Maybe)):
        inner = shape.shape if isinstance(shape, Maybe) else shape[0]
        return None if value is None else fault(value, inner, where)
    if shape == PERCENT:
        return None if fault(value, float) is None and 0 <= value <= 100 else _is(value, where)
    kind: Any = type(shape) if isinstance(shape, (dict, list)) else (int, float) if shape is float else shape
    if not isinstance(value, kind) or (isinstance(value, bool) and shape is not bool):
        return _is(value, where)
    parts: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(shape, dict):
        inner_of = dict.fromkeys(value, shape[str]) if str in shape else shape
        names = {key: f"{where}.{key}".lstrip(".") for key in inner_of}
        missing = [names[key] for key, inner in inner_of.items() if key not in value and type(inner) is not Maybe]
        if missing:
            return f"{missing[0]} is missing"
        parts = ((value[key], inner, names[key]) for key, inner in inner_of.items() if key in value)
    elif isinstance(shape, list):
        parts = ((one, shape[0], f"{where}[{number}]") for number, one in enumerate(value))
    return next((found for part in parts if (found := fault(*part)) is not None), None)


def _is(value: Any, where: str) -> str:
    return f"{where or 'it'} is {json.dumps(value)[:40]}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The tail of an error message: the near names, then all names."""
    near = difflib.get_close_matches(word, known, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."
