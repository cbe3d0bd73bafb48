"""From a request to the contents of image files: one as the body, several as `multipart/form-data` or in JSON.

What files are called, and which type they say they have, is not looked at: only their bytes are.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from offramp.serve.limits import Budget, Limits, RequestError
from offramp.serve.messages import Images

_PART_HEADERS, _PART_HEADER_BYTES = 8, 1024  # of a part; browsers send two or three
_json = msgspec.json.Decoder(Images)


class HungUpError(Exception):
    """The client has gone."""


async def read_body(receive: Receive, declared: bytes | None, limits: Limits, budget: Budget) -> bytes:
    """The body, whole; what it took of the budget is `len` of it, to be given back.

    Args:
        declared: The header `Content-Length`, which the parser of HTTP has checked; None: the body ends when it ends.

    Raises:
        RequestError: It has more bytes than it may, or there is no room for them now.
        HungUpError: The client has gone.
    """
    if declared is not None and int(declared) > limits.max_body:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUpError
            chunk = message.get("body", b"")
            if size + len(chunk) > limits.max_body:
                raise _too_large(limits)
            budget.take(len(chunk))
            size += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except BaseException:
        budget.give_back(size)
        raise


def images_of(body: bytes, content_type: bytes, limits: Limits) -> tuple[list[bytes], bool]:
    """The contents of the files in a body, and whether there may be several.

    Raises:
        RequestError: A body of another type, or that is not what its type says; no image, or more than there may be.
    """
    kind, _, _ = content_type.partition(b";")
    match kind.strip().lower():
        case b"multipart/form-data":
            return _parts(body, content_type, limits), True
        case b"application/json":
            return _of_json(body, limits), True
        case b"image/png" | b"image/jpeg" | b"image/webp" | b"application/octet-stream":
            if not body:
                raise RequestError(400, "empty", "The body is empty: send an image file.")
            return [body], False
    raise RequestError(
        415,
        "type",
        "Content-Type must be image/png, image/jpeg, image/webp, multipart/form-data or application/json.",
    )


def _of_json(body: bytes, limits: Limits) -> list[bytes]:
    try:
        images = _json.decode(body).images
    except msgspec.ValidationError as error:
        raise RequestError(422, "json", f"The body does not fit: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "json", "The body is not JSON.") from error
    if len(images) > limits.max_images:
        raise _too_many(limits)
    return images


def _parts(body: bytes, content_type: bytes, limits: Limits) -> list[bytes]:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:  # as RFC 2046 has it
        raise RequestError(400, "multipart", "multipart/form-data needs a boundary of 1 to 70 characters.")
    found: list[bytearray] = []

    def begin() -> None:
        if len(found) == limits.max_images:
            raise _too_many(limits)
        found.append(bytearray())

    def data(content: bytes, start: int, end: int) -> None:
        found[-1] += memoryview(content)[start:end]

    ended: list[bool] = []
    callbacks: Mapping[str, Any] = {
        "on_part_begin": begin,
        "on_part_data": data,
        "on_end": lambda: ended.append(True),
    }
    parser = MultipartParser(
        boundary,
        callbacks,  # type: ignore[arg-type]
        max_header_count=_PART_HEADERS,
        max_header_size=_PART_HEADER_BYTES,
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, "multipart", "The body is not multipart/form-data as its boundary says.") from error
    if not ended:
        raise RequestError(400, "multipart", "The body ends before its last boundary.")
    if not found:
        raise RequestError(400, "empty", "There is no file in the body.")
    return [bytes(content) for content in found]


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, "body", f"The body has more than {limits.max_body / 2**20:g} MB.")


def _too_many(limits: Limits) -> RequestError:
    return RequestError(413, "images", f"There are more than {limits.max_images} images in the request.")
