"""Checks of arguments, and the words that refuse them: which one, what it must be, what it is.

A dataclass says in the annotations of its fields what they may be, and `check_fields` sees to it.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from offramp.errors import UsageError

LARGEST = 3.4028234663852886e38  # of float32; torch is not imported for it
MOST = 2**20  # of anything that is counted: layers, channels, classes, pixels of a side
_SHOWN = 100  # characters of a value in a message


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse anything but a whole number of at least `least`, and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, not {shown(value)}.")
    if most is not None and value > most:
        raise UsageError(f"{name} must be a whole number of at most {most}, not {shown(value)}.")


def check_counts(**values: Any) -> None:
    """Refuse what is not a whole number of at least 1, and what no machine has so much of."""
    for name, value in values.items():
        check_whole(name, value, 1, MOST)


def check_number(name: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    """Refuse what is no finite number or for which `holds` is false; `allowed` says so: "of at least 0"."""
    if not (_is_finite(value) and holds(value)):
        raise UsageError(f"{name} must be a number {allowed}, not {shown(value)}.")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all of float64
        return False


def check_size(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0, and what float32 cannot hold: weights and losses are float32."""
    check_number(name, value, "of at least 0", lambda value: value >= 0)
    if value > LARGEST:
        raise UsageError(f"{name} must be at most {LARGEST:.3g}, the largest number of float32, not {value!r}.")


def check_flags(**values: Any) -> None:
    """Refuse what is neither True nor False: a word on the command line would count as True."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be true or false, not {shown(value)}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of `choices`."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}.")


def check_name(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is none of the `known` words."""
    if value not in known:
        raise UsageError(f"{name} {shown(value)} is unknown.{did_you_mean(str(value)[:_SHOWN], known)}")


@dataclasses.dataclass(frozen=True)
class Check:
    """In an annotation: refuses a value of the field (each item of a tuple), called with the field's name and it."""

    refuse: Callable[[str, Any], None]


def whole(least: int, most: int | None = None) -> Check:
    """See `check_whole`."""
    return Check(partial(check_whole, least=least, most=most))


def number(allowed: str, holds: Callable[[float], bool]) -> Check:
    """See `check_number`."""
    return Check(partial(check_number, allowed=allowed, holds=holds))


SIZE = Check(check_size)
ABOVE_0 = number("above 0", lambda value: value > 0)
SHARE = number("from 0 to 1", lambda value: 0 <= value <= 1)


def check_fields(value: Any, *, hyphens: bool = False) -> None:
    """Refuse a dataclass with a field that is not what its annotation says: a `Check`, a `Literal`, a truth value.

    None is left alone where the annotation allows it. `hyphens`: in errors names are as on the command line.
    """
    hints = get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        hint, content = hints[field.name], getattr(value, field.name)
        name = field.name.replace("_", "-") if hyphens else field.name
        kind = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if content is None and NoneType in kinds:
            continue
        has_items = isinstance(content, (list, tuple)) and any(get_origin(kind) is tuple for kind in kinds)
        for check in (check for check in getattr(hint, "__metadata__", ()) if isinstance(check, Check)):
            for item in content if has_items else [content]:
                check.refuse(name, item)
        for choices in (get_args(kind) for kind in kinds if get_origin(kind) is Literal):
            check_name(name, content, choices)
        if kind is bool:
            check_flags(**{name: content})


def shown(value: Any) -> str:
    """A value for a message: a long one is cut."""
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 1024 else "a number of hundreds of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The tail of an error message: the near names, then all names."""
    return f"{near(word, known, 2)} Known: {', '.join(known)}."


def near(word: str, known: Sequence[str], most: int = 3) -> str:
    """A question that names the nearest, where some are near."""
    names = difflib.get_close_matches(word, known, n=most)
    return f" Did you mean {' or '.join(names)}?" if names else ""
