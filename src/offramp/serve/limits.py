"""What a request may take of the server, and what is said where it takes more. Nothing here knows images."""

from dataclasses import dataclass

import msgspec

TOGETHER = 16  # bodies of the largest size that may be held at once


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What holds before an image is decoded.

    Attributes:
        max_body: Bytes of one request's body; of all that are held at once `TOGETHER` times as many.
        max_megapixels: Million pixels of an image, by its header.
        max_images: Images of one request.
        max_connections: Connections at once.
        max_head: Bytes of a request's first line and headers.
        max_headers: Number of headers.
        head_seconds: In which first line and headers have to come in.
        body_seconds: In which the body has to come in.
        write_seconds: In which a client has to read what was written to it.
        idle_seconds: That a connection may rest between two requests.
    """

    max_body: int = 16 * 2**20
    max_megapixels: float = 25
    max_images: int = 64
    max_connections: int = 512
    max_head: int = 16 * 2**10
    max_headers: int = 100
    head_seconds: float = 10
    body_seconds: float = 30
    write_seconds: float = 30
    idle_seconds: float = 5


class RequestError(Exception):
    """A request that is not answered as asked: an HTTP status and one plain line.

    Attributes:
        reason: A word for counters, of a small vocabulary.
        retry_after: Seconds after which it may be tried again, if it may.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after

    @property
    def content(self) -> bytes:
        """The body of the answer."""
        return msgspec.json.encode({"error": self.message})

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer, but for its type and length."""
        if self.retry_after is None:
            return []
        return [(b"retry-after", b"%d" % max(1, min(round(self.retry_after + 0.5), 3600)))]


class Budget:
    """Bytes of all bodies that are held at once, of which each request takes as they come in."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def take(self, count: int) -> None:
        """Take more bytes.

        Raises:
            RequestError: There are none left.
        """
        if self.held + count > self.limit:
            raise RequestError(429, "memory", "The server holds as many bytes of requests as it may.", 1)
        self.held += count

    def give_back(self, count: int) -> None:
        """Give bytes back."""
        self.held -= count
