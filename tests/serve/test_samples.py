from pathlib import Path

from offramp import shipped
from offramp.serve.card import media_type
from offramp.serve.samples import samples


def test_of_a_shipped_network_by_class(tmp_path: Path) -> None:
    shipped.copy("digits", tmp_path / "run")
    found = samples(tmp_path / "run", tuple("0123456789"))
    assert [one.label for one in found] == list(range(10))
    assert all(
        one.path.name.startswith(f"{one.label}-") and media_type(one.path.read_bytes()) == "image/png" for one in found
    )


def test_of_ones_own_by_folder_at_most_24(tmp_path: Path) -> None:
    for name in ("dogs", "others"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "images" / name / f"{number}.JPG").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "images" / "notes.txt").write_text("")
    found = samples(tmp_path, ("cats", "dogs"))
    assert len(found) == 24
    assert {(one.path.parent.name, one.label, media_type(one.path.read_bytes())) for one in found} == {
        ("others", None, "image/jpeg"),
        ("dogs", 1, "image/jpeg"),
    }


def test_none_where_there_is_no_folder(tmp_path: Path) -> None:
    assert samples(tmp_path, ("cats",)) == ()
