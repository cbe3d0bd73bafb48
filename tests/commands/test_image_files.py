import os
from pathlib import Path

import pytest

from offramp.commands.image_files import find_images
from offramp.errors import OfframpError, UsageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_are_searched_by_name_and_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/2.JPG", "a/10.webp", "a/deep/x.jpeg", "c/notes.txt", "c/.hidden.png", ".git/y.png")
    found = [os.path.relpath(file, tmp_path) for file in find_images([tmp_path])]
    assert found == ["a/10.webp", "a/2.JPG", "a/deep/x.jpeg", "b.png"]


def test_images_of_a_kind_that_is_not_read_are_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "scan.tif", "b.png")
    assert find_images([tmp_path]) == [str(tmp_path / "b.png"), str(tmp_path / "scan.tif")]


def test_files_are_taken_as_named_in_the_order_named(tmp_path: Path) -> None:
    touch(tmp_path, "z", ".y.png", "folder/x.png")
    named = [tmp_path / "z", tmp_path / "folder", tmp_path / ".y.png", tmp_path / "z"]
    expected = [tmp_path / "z", tmp_path / "folder" / "x.png", tmp_path / ".y.png", tmp_path / "z"]
    assert find_images(named) == [str(path) for path in expected]


def test_paths_stay_as_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "folder/x.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["folder", Path("folder/x.png")]) == ["folder/x.png", "folder/x.png"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/x.png", "elsewhere/y.png")
    (tmp_path / "pictures" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "self").symlink_to(tmp_path / "pictures")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    found = [os.path.relpath(file, tmp_path / "pictures") for file in find_images([tmp_path / "pictures"])]
    assert found == ["nowhere.png", "other/y.png", "x.png"]  # the broken one will be named when it is read


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "x.png")
    with pytest.raises(UsageError, match=r"There is no file or folder .*gone\.$"):
        find_images([tmp_path, tmp_path / "gone"])
    with pytest.raises(UsageError, match=r"gone \(1 more are missing\)"):
        find_images([tmp_path / "gone", tmp_path, tmp_path / "away"])


def test_no_image_at_all_is_wrong_use(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "empty/.hidden.png")
    with pytest.raises(UsageError, match=r"There is no image \(\.jpeg, .*\) in "):
        find_images([tmp_path])


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OfframpError, match=r"The folder .* cannot be read: Permission denied"):
        find_images([tmp_path])
