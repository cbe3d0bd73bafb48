"""JSON files as typed values: `read` gives what a file holds as a class, `write` writes it; damage is one error.

A class is a dataclass: its fields are the keys, those without a default have to be there, further keys are passed over
(a newer offramp may write them). Its own checks, in `__post_init__`, count as the file's. `Any` is any JSON value.
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from offramp.errors import OfframpError, UsageError
from offramp.storage import DamagedFileError, parse_json, write_atomically

T = TypeVar("T")
_SHOWN = 300  # characters of what is wrong


def read(path: Path, kind: type[T], *, newest: int | None = None, hint: str = "") -> T:
    """What a JSON file holds; a file whose `format` is later than `newest` is refused as such.

    Args:
        hint: A sentence after the error's: the way out.

    Raises:
        UsageError: There is no such file, it is a folder, or a newer offramp wrote it.
        OfframpError: It cannot be read; as a DamagedFileError, it holds something else, with the field that does.
    """
    return convert(parse(_content(path), path, hint), kind, path, newest=newest, hint=hint)


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """What a file with one JSON value a line holds; see `read`."""
    lines = [(line, f"{path}, line {n}") for n, line in enumerate(_content(path).splitlines(), 1)]
    return [convert(parse(line, where), kind, where) for line, where in lines]


def write(path: Path, value: Any, *, indent: int = 1, sort_keys: bool = False) -> None:
    """Write a value as readable JSON, whole or not at all."""
    write_atomically(path, encoded(value, indent=indent, sort_keys=sort_keys))


def encoded(value: Any, *, indent: int = 1, sort_keys: bool = False) -> bytes:
    """What `write` writes."""
    return f"{json.dumps(value, indent=indent, sort_keys=sort_keys, default=msgspec.to_builtins)}\n".encode()


def convert(
    value: Any, kind: type[T], source: object, *, newest: int | None = None, exact: bool = False, hint: str = ""
) -> T:
    """A JSON value as a class; `source` says in errors where it stands. See `read`; `exact`: no further keys."""
    number = value.get("format") if isinstance(value, dict) else None
    if newest is not None and isinstance(number, int) and number > newest:
        raise UsageError(
            f"{source} was written by a newer offramp (format {number}; this one reads up to {newest}). Update offramp."
        )
    try:
        typed = msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _damaged(source, _explained(error), hint) from error
    except UnicodeEncodeError as error:  # half a character, where no text may stand
        raise _damaged(source, f"it has {error.object!r:.40} where no text may stand", hint) from error
    if exact and (more := _unknown(value, msgspec.to_builtins(typed, str_keys=True))):
        raise _damaged(source, f"it has {more[0]!r:.40}, which is unknown", hint)
    return typed


def _unknown(value: Any, known: Any) -> list[str]:
    """Keys, anywhere in a JSON value, that its class has no fields for."""
    if isinstance(value, dict) and isinstance(known, dict):
        inner = [more for key in value.keys() & known.keys() for more in _unknown(value[key], known[key])]
        return [*(key for key in value if key not in known), *inner]
    if isinstance(value, list) and isinstance(known, list | tuple):
        return [more for ours, theirs in zip(value, known, strict=True) for more in _unknown(ours, theirs)]
    return []


def parse(text: bytes | str, source: object, hint: str = "") -> Any:
    """The JSON value in a text; one that is nested deeply or has a key twice is none that offramp writes."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise _damaged(source, str(error), hint) from error


def _content(path: Path) -> bytes:
    try:
        if path.is_file():  # a pipe or a device may never end
            return path.read_bytes()
        what = "is a folder, not a file" if path.is_dir() else "is no file"
        raise UsageError(f"{path} {what}." if path.exists() else f"There is no file {path}.")
    except OSError as error:
        raise OfframpError(f"{path} cannot be read: {error.strerror or error}.") from error


def _explained(error: msgspec.ValidationError) -> str:
    """`exits[0].top1: expected float, got str`."""
    problem, _, place = str(error).replace("`", "").rpartition(" - at ")
    if not problem:
        problem, place = place, ""
    field = re.sub(r"^\$\.?", "", place)
    problem = re.sub("^(Expected|Object|Invalid|Number)", lambda word: word[0].lower(), problem).rstrip(".")
    return f"{field}: {problem}" if field else problem


def _damaged(source: object, problem: str, hint: str) -> DamagedFileError:
    return DamagedFileError(f"{source} is damaged: {problem[:_SHOWN]}.{hint and f' {hint}'}")
