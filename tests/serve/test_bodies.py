"""Bodies: with and without a declared length, parts, JSON; what the limits keep out, and what comes in without."""

import contextlib
import json
import random
import tracemalloc

import pytest
from tests.serve.conftest import Fake, Serving, an_answer, multipart, picture, post, serving, wait_for

from offramp.serve.bodies import images_of
from offramp.serve.limits import Budget, Limits, RequestError

MB = 2**20
SMALL = Limits(max_body=MB)


def chunked(content: bytes, size: int = 65536) -> bytes:
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def head(*headers: bytes) -> bytes:
    lines = [b"POST /v1/predict HTTP/1.1", b"Host: localhost", b"Content-Type: image/png", *headers]
    return b"\r\n".join([*lines, b"", b""])


def test_a_large_body_is_refused_before_it_comes() -> None:
    with serving(limits=SMALL) as server:
        connection = server.open(head(b"Content-Length: %d" % (2**40), b"Expect: 100-continue"))
        assert connection.recv(12) == b"HTTP/1.1 413"  # no "100 Continue"
    with serving(limits=Limits(max_body=2**41)) as server:
        connection = server.open(head(b"Content-Length: %d" % (2**40), b"Expect: 100-continue"))
        assert connection.recv(12) == b"HTTP/1.1 100"


def test_a_large_body_without_a_length_is_refused_when_it_has_come_too_far() -> None:
    content = b"\x89PNG" + bytes(3 * MB)
    with serving(limits=SMALL) as server:
        connection = server.open()
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            connection.sendall(head(b"Transfer-Encoding: chunked") + chunked(content))
        assert connection.recv(12) == b"HTTP/1.1 413"
        assert wait_for(lambda: server.app._budget.held == 0)
    with serving() as server:
        connection = server.open(head(b"Transfer-Encoding: chunked") + chunked(content))
        assert connection.recv(12) == b"HTTP/1.1 415"  # all of it was read


def test_a_body_in_chunks_is_answered_as_a_whole_one(shared: Serving) -> None:
    connection = shared.open(head(b"Transfer-Encoding: chunked") + chunked(picture(2), 7))
    assert b'"label":2' in an_answer(connection)


def test_all_bodies_together_have_a_limit() -> None:
    """Unprotected, each connection may hold as much as one body may have."""
    limits = Limits(max_body=MB)
    half = head(b"Content-Length: %d" % MB) + bytes(MB - 1000)
    with serving(Fake(capacity=100), limits) as server:
        for _ in range(20):
            server.open(half)
        assert wait_for(lambda: server.counted('offramp_refusals_total{reason="memory"}') >= 4)
        assert server.app._budget.held <= 16 * MB
        assert server.ask("GET", "/healthz")[0] == 200
    with serving(Fake(capacity=100), limits) as server:
        server.app._budget = Budget(10**12)
        for _ in range(20):
            server.open(half)
        assert wait_for(lambda: server.app._budget.held > 19 * MB)


def test_more_parts_than_there_may_be_are_not_kept() -> None:
    body = multipart(*[b"x"] * 10_000)
    with pytest.raises(RequestError, match="more than 64 images") as caught:
        images_of(body, b"multipart/form-data; boundary=edge", Limits())
    assert caught.value.status == 413
    contents, _ = images_of(body, b"multipart/form-data; boundary=edge", Limits(max_images=10_000))
    assert len(contents) == 10_000


def test_parts_end_where_there_are_too_many() -> None:
    body = multipart(*[b"x"] * 2_000)

    def peak(limits: Limits) -> int:
        tracemalloc.start()
        try:
            images_of(body, b"multipart/form-data; boundary=edge", limits)
        except RequestError:
            pass
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    assert peak(Limits()) * 5 < peak(Limits(max_images=10_000))


def test_more_images_in_json_than_there_may_be(shared: Serving) -> None:
    status, answer = shared.predict(json.dumps({"images": [""] * 65}).encode(), "application/json")
    assert (status, answer) == (413, {"error": "There are more than 64 images in the request."})


@pytest.mark.parametrize(
    "name",
    [
        b"\xff\xfe.png",
        b"\xed\xa0\x80.png",
        b"../../etc/passwd",
        b"a\r\nX-Injected: 1",
        b"\x00",
        b"x" * 900,
        b'a\\"b',
        b"%0d%0a",
    ],
)
def test_names_are_not_looked_at(name: bytes, shared: Serving) -> None:
    """They are never decoded, written or sent back."""
    body = multipart(picture(2), names=[name])
    status, headers, content = shared.ask(
        "POST", "/v1/predict", body, {"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert status in (200, 400)
    assert "x-injected" not in headers
    assert name not in content
    assert shared.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "image/png", 400),
        (b"", "multipart/form-data; boundary=edge", 400),
        (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400),
        (multipart(b"x")[:-10], "multipart/form-data; boundary=edge", 400),
        (multipart(b"x"), "multipart/form-data", 400),
        (multipart(b"x"), "multipart/form-data; boundary=" + "x" * 71, 400),
        (multipart(b"x"), "multipart/form-data; boundary=other", 400),
        (multipart(b"x", names=[b"x" * 5000]), "multipart/form-data; boundary=edge", 400),
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 422),
        (b'{"images": ["\xff"]}', "application/json", 422),
        (b"\xff", "application/json", 400),
        (b"{}", "application/json", 422),
        (b'{"images": []}', "application/json", 422),
        (b'{"images": ["not base64!"]}', "application/json", 422),
        (b'{"images": [1]}', "application/json", 422),
        (b'{"images": ["eA=="], "more": 1}', "application/json", 422),
        (b"x=1", "application/x-www-form-urlencoded", 415),
        (b"<svg/>", "image/svg+xml", 415),
        (b"GIF89a", "image/gif", 415),
        (b"GIF89a", "image/png", 415),
        (b"BM", "application/octet-stream", 415),
    ],
)
def test_what_is_not_what_it_says_is_one_line(body: bytes, kind: str, status: int, shared: Serving) -> None:
    found, answer = shared.predict(body, kind)
    assert found == status
    assert answer.keys() == {"error"}
    assert "\n" not in answer["error"]


def test_random_multipart_is_parsed_or_refused() -> None:
    """Anything else would be a traceback, or a part that belongs to another."""
    numbers = random.Random(0)
    whole = multipart(picture(0), picture(1), b"x\r\n--edg\r\n")
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(numbers.randrange(1, 6)):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        try:
            contents, _ = images_of(
                bytes(damaged[: numbers.randrange(len(damaged))]), b"multipart/form-data; boundary=edge", Limits()
            )
        except RequestError:
            continue
        assert sum(map(len, contents)) < len(damaged)


def test_nothing_is_read_where_there_is_no_place() -> None:
    with serving(Fake(capacity=1)) as server:
        server.schedules.hold.set()
        server.open(post(picture()))
        assert wait_for(lambda: server.schedules.submitted == 1)
        connection = server.open(head(b"Content-Length: 1000000", b"Expect: 100-continue"))
        assert connection.recv(12) == b"HTTP/1.1 429"
