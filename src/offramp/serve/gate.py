"""Who may ask at all: looked at before a path is, on every request that is not for everybody."""

import hmac
import re
from collections.abc import Iterable

from starlette.types import Scope

from offramp.serve.limits import RequestError

FREE = ("/", "/healthz", "/readyz")  # the page holds no secret, and asks for the token itself
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::\d*)?")
_FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")


class Gate:
    """The token, and names under which the server may be asked.

    Args:
        token: What `Authorization: Bearer` has to hold; None: no token is needed.
        hosts: Names that the header `Host` may have; none: any. A page of a stranger, whose name leads to this
            machine, cannot read answers then (DNS rebinding).
    """

    def __init__(self, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self._expected = None if token is None else token.encode()
        self._hosts = frozenset(name.lower().encode() for name in hosts)

    def check(self, scope: Scope) -> None:
        """Raises:
        RequestError: Another host, another site's page, no token or a wrong one.
        """
        hosts, tokens, origins = [], [], []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"authorization":
                tokens.append(value)
            elif name == b"origin":
                origins.append(value)
        if len(hosts) > 1:
            raise RequestError(400, "host", "There is more than one Host header.")
        if self._hosts and hosts:
            match = _HOST.fullmatch(hosts[0])
            if match is None or match[1].lower() not in self._hosts:
                raise RequestError(400, "host", "This server is not asked by this name (Host); see --allow-host.")
        if origins and scope["method"] not in ("GET", "HEAD") and not _is_same(origins, hosts):
            raise RequestError(403, "origin", "A page of another site may not ask this server.")
        if self._expected is not None and scope["path"] not in FREE:
            scheme, _, token = tokens[0].partition(b" ") if len(tokens) == 1 else (b"", b"", b"")
            if not hmac.compare_digest(token.strip(), self._expected) or scheme.lower() != b"bearer":
                raise RequestError(401, "token", "Authorization: Bearer needs the server's token.")


def _is_same(origins: list[bytes], hosts: list[bytes]) -> bool:
    return len(origins) == len(hosts) == 1 and origins[0].partition(b"://")[2].lower() == hosts[0].lower()


def is_from_here(scope: Scope) -> bool:
    """Whether a request was made on this machine, and not handed on by a proxy that runs on it."""
    client = scope.get("client")
    address = client[0] if client else ""
    is_loopback = address == "::1" or address.startswith(("127.", "::ffff:127."))
    return is_loopback and not any(name in _FORWARDED for name, _ in scope["headers"])
