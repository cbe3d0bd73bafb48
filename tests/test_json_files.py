import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from offramp.errors import OfframpError, UsageError
from offramp.json_files import convert, read, read_lines, write
from offramp.storage import DamagedFileError


@dataclass(frozen=True)
class Exit:
    top1: Annotated[float, Meta(ge=0, le=100)]


@dataclass(frozen=True)
class Held:
    name: str
    loss: float | None
    exits: tuple[Exit, ...] = ()
    images: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise UsageError("a name must not be empty.")


FITS: dict[str, Any] = {"name": "a", "loss": None, "exits": [{"top1": 100}], "more": 1}


def held(path: Path, value: Any) -> Held:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read(path, Held, newest=1)


@pytest.mark.parametrize("change", [{}, {"loss": 1}, {"loss": float("inf")}, {"exits": []}, {"format": 1}])
def test_what_is_written_is_read(change: dict[str, Any], tmp_path: Path) -> None:
    value = held(tmp_path / "a.json", {**FITS, **change})
    write(tmp_path / "b.json", value)
    assert read(tmp_path / "b.json", Held) == value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({**FITS, "name": 1}, "name: expected str, got int"),
        ({"loss": None}, "missing required field name"),
        ({**FITS, "loss": "x"}, "loss: expected float"),
        ({**FITS, "loss": True}, "loss: expected float"),
        ({**FITS, "loss": 10**400}, "loss: number out of range"),
        ({**FITS, "exits": {}}, "exits: expected array"),
        ({**FITS, "exits": [{"top1": 1}, {"top1": 101}]}, r"exits\[1\].top1"),
        ({**FITS, "exits": [{"top1": float("nan")}]}, r"exits\[0\].top1"),
        ({**FITS, "images": {"x": None}}, "images"),
        ({**FITS, "name": ""}, "a name must not be empty"),
        ([], "expected object, got array"),
        ("", "Expecting value"),
        ('{"name": "a"', "Expecting"),
        ('{"name": "a", "name": "b", "loss": 1}', "the key 'name' twice"),
        ("[" * 100_000, "nested more than"),
        ("1" * 10_000, "digits"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_damage_is_one_line_that_names_file_and_field(value: Any, place: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=place) as caught:
        held(tmp_path / "a.json", value)
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'} is damaged: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_and_what_is_newer_is_told_from_damage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        read(tmp_path / "none.json", Held)
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path, Held)
    with pytest.raises(UsageError, match="newer offramp"):
        held(tmp_path / "a.json", {"format": 2})
    (tmp_path / "a.json").write_bytes(b"\xff{}")
    with pytest.raises(OfframpError, match="utf-8"):
        read(tmp_path / "a.json", Held)


def test_further_keys_are_refused_only_where_nothing_else_may_stand() -> None:
    nested = {"name": "a", "loss": 1, "exits": [{"top1": 1, "top5": 2}]}
    assert convert(nested, Held, "it").exits == (Exit(1),)
    for value, key in ((nested, "top5"), (FITS, "more")):
        with pytest.raises(DamagedFileError, match=key):
            convert(value, Held, "it", exact=True)
    assert convert({**FITS, "more": 1} | {"images": {"x": 1}}, Held, "it").images == {"x": 1}


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"top1": 1}\n{"top1": 2}\n')
    assert read_lines(path, Exit) == [Exit(1), Exit(2)]
    path.write_text('{"top1": 1}\n{"top1": 2')
    with pytest.raises(DamagedFileError, match="line 2"):
        read_lines(path, Exit)
