"""Height and width of an image file by its header: PNG, JPEG, WebP. Nothing is decoded.

Not Pillow's: it refuses large WebP files by a limit of its own for the whole process, large texts in PNG files, and
reads a photograph's EXIF data, of which it may warn. These are the places where the decoders themselves (libpng,
libjpeg, libwebp) look, and they refuse a file that says two sizes.
"""

import re
import struct

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff([\x01-\xfe])")  # what stands before it, and more 0xff, is passed over as libjpeg does
_MARKER_AFTER_SCAN = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # no 0 that fills up a scan, no restart
_MAX_MARKERS = 10_000  # a file may consist of nothing else
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_NO_IMAGE = {0xD8, 0xD9, 0xDA}  # another start, the end, a scan: none may come before the frame


def size_of(content: bytes | bytearray) -> tuple[int, int] | None:
    """Height and width of the image in a file; None where it is no PNG, JPEG or WebP file, or too short to say."""
    try:
        if content.startswith(_PNG) and content[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", content, 16)
            return height, width
        if content.startswith(_JPEG):
            return _size_of_jpeg(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _size_of_webp(content)
    except struct.error:  # the file ends too early
        pass
    return None


def _size_of_jpeg(content: bytes | bytearray) -> tuple[int, int] | None:
    position = 2
    for _ in range(_MAX_MARKERS):
        match = _MARKER.search(content, position)
        if match is None or (marker := match[1][0]) in _NO_IMAGE:
            return None
        position = match.end()
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">xxxHH", content, position)
            return height, width
        if marker not in _BARE:
            position += struct.unpack_from(">H", content, position)[0]
    return None


def _size_of_webp(content: bytes | bytearray) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":  # the canvas; libwebp refuses an image in it of another size
        width, more, height, most = struct.unpack_from("<HBHB", content, 24)  # 24 bits each, less one
        return (most << 16 | height) + 1, (more << 16 | width) + 1
    return None


def has_more_scans(content: bytes | bytearray, limit: int) -> bool:
    """Whether the image of a JPEG file comes in more scans than `limit`; False of any other file."""
    if not content.startswith(_JPEG):
        return False
    position, scans = 2, 0
    for _ in range(_MAX_MARKERS):
        match = _MARKER_AFTER_SCAN.search(content, position)
        if match is None or match[1][0] == 0xD9 or len(content) < match.end() + 2:
            return False
        scans += match[1][0] == 0xDA
        if scans > limit:
            return True
        position = match.end() + struct.unpack_from(">H", content, match.end())[0]
    return True  # what comes in so many pieces is no photograph
