import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

import pytest

from offramp.errors import OfframpError, UsageError
from offramp.serve import web_runtime as module
from offramp.serve.web_runtime import FILES, web_runtime


def package() -> bytes:
    """An archive like npm's."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name in (*FILES, "other.mjs"):
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return written.getvalue()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is asked for of a registry that gives this archive."""
    content, asked = package(), []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(module, "SHA512", base64.b64encode(hashlib.sha512(content).digest()).decode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


def test_it_is_downloaded_once_and_said_before(published: list[str], capsys: pytest.CaptureFixture) -> None:
    first = web_runtime()
    assert {name: first[name].decode() for name in FILES} == {name: name for name in FILES}
    assert b"MIT" in first["LICENSE.txt"]
    assert "33 MB" in capsys.readouterr().err
    assert web_runtime() == first
    assert len(published) == 1
    assert capsys.readouterr().err == ""


def test_other_bytes_than_were_published_are_refused(
    published: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SHA512", "another")
    with pytest.raises(OfframpError, match="not onnxruntime-web"):
        web_runtime()
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_lacks_a_file(published: list[str], tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_text("")
    with pytest.raises(UsageError, match=f"lacks {FILES[1]}"):
        web_runtime(tmp_path)
    assert published == []


@pytest.mark.slow
def test_the_published_package_is_the_pinned_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        files = web_runtime()
    except OfframpError as error:
        if "could not be downloaded" in str(error):
            pytest.skip(str(error))
        raise
    assert files[FILES[1]][:4] == b"\0asm"
