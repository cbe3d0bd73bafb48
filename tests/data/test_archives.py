import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from offramp.data.archives import check, download, root_folder
from offramp.errors import OfframpError

CONTENT = b"some published file"
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves the file whole at /set.tar.gz, and breaks off in the middle at /cut/set.tar.gz."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:5] if self.path.startswith("/cut") else CONTENT)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Server) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_root_is_what_was_asked_for_else_the_environment_else_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_DATA", "/somewhere")
    assert root_folder("~/data") == Path.home() / "data"
    assert root_folder(None) == Path("/somewhere")
    monkeypatch.delenv("OFFRAMP_DATA")
    assert root_folder(None) == Path.home() / ".cache" / "offramp"


def test_a_download_is_verified_and_then_named(server: str, tmp_path: Path) -> None:
    target = tmp_path / "root" / "set.tar.gz"
    download(f"{server}/set.tar.gz", target, MD5)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["set.tar.gz"]


@pytest.mark.parametrize(("place", "md5"), [("cut/set.tar.gz", MD5), ("set.tar.gz", "0" * 32)])
def test_a_download_that_is_cut_off_or_another_file_leaves_nothing(
    server: str, tmp_path: Path, place: str, md5: str
) -> None:
    target = tmp_path / "root" / "set.tar.gz"
    with pytest.raises(OfframpError, match=r"set\.tar\.gz is not in .*root and could not be downloaded"):
        download(f"{server}/{place}", target, md5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(OfframpError) as caught:
        download("https://example.org/set.tar.gz", tmp_path / "set.tar.gz", MD5)
    message = str(caught.value)
    assert f"set.tar.gz is not in {tmp_path}" in message
    assert "no route to host" in message
    assert "Fetch https://example.org/set.tar.gz and put it there" in message
    assert "\n" not in message


@pytest.mark.usefixtures("no_network")
def test_a_half_finished_download_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:4])
    with pytest.raises(OfframpError, match=r"set\.tar\.gz\.part there is a download that did not finish"):
        download("https://example.org/set.tar.gz", tmp_path / "set.tar.gz", MD5)


def test_a_folder_that_cannot_be_written_is_an_error_too(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OfframpError, match="could not be downloaded"):
        download(f"{server}/set.tar.gz", tmp_path / "file" / "set.tar.gz", MD5)


def test_content_with_another_checksum_is_refused() -> None:
    assert check(CONTENT, MD5, Path("set.tar.gz"), "Fetch it.") == CONTENT
    with pytest.raises(
        OfframpError, match=rf"set.tar.gz is damaged, not fully downloaded, or another file .*expected {MD5}\)\. Fetch"
    ):
        check(CONTENT[:-1], MD5, Path("set.tar.gz"), "Fetch it.")
