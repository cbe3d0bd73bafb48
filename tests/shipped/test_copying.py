"""A copy is whole or not there, is a finished run, and never overwrites anything."""

import os
from pathlib import Path

import pytest
import torch

import offramp
from offramp import shipped
from offramp.errors import OfframpError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", shipped.names())
def test_a_copy_has_everything_and_is_the_same_network(name: str, tmp_path: Path) -> None:
    out = tmp_path / "some" / "where"
    assert shipped.copy(name, out)
    assert contents(out) == contents(shipped.folder(name))
    assert list(out.parent.iterdir()) == [out]  # nothing is left beside it
    ours, theirs = (offramp.load(path) for path in (out, shipped.folder(name)))
    images = torch.rand(2, *ours.image_shape)
    assert torch.equal(ours(images), theirs(images))


def test_an_empty_folder_is_good_enough(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert shipped.copy("digits", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(shipped.folder("digits"))


def test_the_same_again_touches_nothing(tmp_path: Path) -> None:
    shipped.copy("digits", tmp_path / "out")
    (tmp_path / "out" / "policy.json").write_text("{}")  # `offramp certify` was here
    (tmp_path / "out" / "evaluation.json").write_text("{}")  # and `offramp evaluate`
    before = contents(tmp_path / "out")
    assert not shipped.copy("digits", tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
@pytest.mark.parametrize("content", [None, b"mine"])
def test_a_folder_with_something_else_is_refused(file: str, content: bytes | None, tmp_path: Path) -> None:
    shipped.copy("digits", tmp_path / "out")
    if content is None:
        (tmp_path / "out" / file).unlink()
    else:
        (tmp_path / "out" / file).write_bytes(content)
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="is not empty and is no whole copy of the example digits"):
        shipped.copy("digits", tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 5:
            raise OfframpError("the disk is full")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(shipped, "write_atomically", full)
    with pytest.raises(OfframpError, match="the disk is full"):
        shipped.copy("digits", tmp_path / "out")
    assert len(written) == 5
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OfframpError, match="cannot be written"):
            shipped.copy("digits", out)
    assert contents(tmp_path) == {"file": b"mine"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="folder you are in"):
        shipped.copy("digits", ".")
    assert os.listdir() == []
    with pytest.raises(UsageError, match="example 'cats' is unknown"):
        shipped.copy("cats", tmp_path / "cats")
