"""Checks of arguments, and the words that refuse them: which one, what it must be, what it is."""

import difflib
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from offramp.errors import UsageError


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


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The tail of an error message: the near names, then all names."""
    near = difflib.get_close_matches(word, known, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."
