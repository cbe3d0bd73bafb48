"""Who may ask: tokens, names of the host, other sites' pages. Each attack succeeds where the gate is open."""

import hmac
import json
from typing import Any

import pytest
from tests.serve.conftest import picture, serving

from offramp.serve.gate import LOOPBACK, Gate, is_from_here

TOKEN = "a-token-of-many-letters"


def asked(**headers: str) -> dict[str, Any]:
    names = {name.replace("_", "-").lower().encode(): value.encode() for name, value in headers.items()}
    return {"type": "http", "method": "POST", "path": "/v1/predict", "headers": list(names.items())}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN} x",
    ],
)
def test_a_wrong_token_is_401(value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    with serving(token=TOKEN) as server:
        for path in ("/v1/predict", "/v1/reload", "/v1/model", "/metrics", "/openapi.json", "/v1/samples", "/nothing"):
            status, sent, content = server.ask("POST" if path == "/v1/predict" else "GET", path, headers=headers)
            assert (status, sent["www-authenticate"]) == (401, "Bearer")
            assert json.loads(content) == {"error": "Authorization: Bearer needs the server's token."}
        assert [server.ask("GET", path)[0] for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]
        assert server.schedules.submitted == 0


def test_the_right_token_opens_and_without_one_all_is_open() -> None:
    with serving(token=TOKEN) as server:
        assert server.predict(picture(), Authorization=f"Bearer {TOKEN}")[0] == 200
        assert server.predict(picture(), Authorization=f"bearer {TOKEN}")[0] == 200
    with serving() as server:
        assert server.predict(picture())[0] == 200


def test_two_tokens_are_none() -> None:
    scope = asked(Authorization=f"Bearer {TOKEN}")
    Gate(TOKEN).check(scope)
    scope["headers"] *= 2
    with pytest.raises(Exception, match="token"):
        Gate(TOKEN).check(scope)


def test_a_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", digest)
    with pytest.raises(Exception, match="token"):
        Gate(TOKEN).check(asked(Authorization="Bearer wrong"))
    Gate(TOKEN).check(asked(Authorization=f"Bearer {TOKEN}"))
    assert compared == [(b"wrong", TOKEN.encode()), (TOKEN.encode(), TOKEN.encode())]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "[::2]", "a b"]
)
def test_a_name_that_leads_here_is_not_enough(host: str) -> None:
    """DNS rebinding: a page of evil.example has its name lead to 127.0.0.1, and reads what it is answered."""
    with serving(hosts=LOOPBACK) as server:
        status, _, content = server.ask("GET", "/v1/model", headers={"Host": host})
        assert status == 400
        assert host not in content.decode()
    with serving() as server:
        assert server.ask("GET", "/v1/model", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8000", "my.proxy"])
def test_its_own_names_are(host: str) -> None:
    Gate(None, (*LOOPBACK, "my.proxy")).check(asked(Host=host))


def test_two_hosts_are_none() -> None:
    scope = asked(Host="localhost")
    scope["headers"] *= 2
    with pytest.raises(Exception, match="more than one Host"):
        Gate().check(scope)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://localhost:8000.evil.example"]
)
def test_a_page_of_another_site_cannot_post(origin: str) -> None:
    """A form of any site may post to 127.0.0.1: it cannot read the answer, but may reload or fill queues."""
    with pytest.raises(Exception, match="another site"):
        Gate().check(asked(Host="localhost:8000", Origin=origin))
    Gate().check(asked(Host="localhost:8000", Origin="http://localhost:8000"))
    Gate().check(asked(Host="localhost:8000"))


def test_no_answer_allows_other_sites_to_read_it() -> None:
    with serving() as server:
        _, headers, _ = server.ask("GET", "/v1/model", headers={"Origin": "https://evil.example"})
        assert not [name for name in headers if name.startswith("access-control")]
        assert server.ask("OPTIONS", "/v1/predict", headers={"Access-Control-Request-Method": "POST"})[0] == 405


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("1270.0.0.1", False),
        (None, False),
    ],
)
def test_what_is_from_here(client: str | None, expected: bool) -> None:
    scope = {**asked(), "client": None if client is None else (client, 5)}
    assert is_from_here(scope) is expected
    scope["headers"] = [(b"x-forwarded-for", b"127.0.0.1")]
    assert not is_from_here(scope)
