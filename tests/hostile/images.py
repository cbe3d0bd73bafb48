"""Image files that would fill the memory, never end, or say what is not so; each has to be refused at once, in a line.

`CASES` by name: a function that makes the file in a folder and returns its path. `failure(make, folder)` says what went
wrong with it, or nothing. `CONTROLS` are harmless files of the same makes, which have to be read.
"""

import io
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from offramp.data.inputs import decode
from offramp.errors import OfframpError

Make = Callable[[Path], Path]
SECONDS = 2.0  # in which each has to be refused; decoding one of them would take longer


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int, *before: bytes) -> bytes:
    """All of a black image of one bit a pixel, whose 400 megapixels take 48 kB."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def jpeg_bomb(*before: bytes, **options: object) -> bytes:
    """A small JPEG file whose frame says 65,000 x 65,000, with more segments before it."""
    content = saved("JPEG", **options)
    start = content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
    large = content[:start] + struct.pack(">HH", 65000, 65000) + content[start + 4 :]
    return large[:2] + b"".join(before) + large[2:]


def webp_bomb(kind: bytes) -> bytes:
    """A small WebP file whose header says 16,000 x 16,000; of `kind` VP8X with a canvas or frames of that size."""
    if kind == b"ANIM":
        frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
        content = bytearray(saved("WEBP", save_all=True, append_images=frames))
    elif kind == b"VP8X":
        file = io.BytesIO()
        Image.new("RGBA", (64, 48), (9, 9, 9, 99)).save(file, "WEBP")
        content = bytearray(file.getvalue())
    else:
        content = bytearray(saved("WEBP", lossless=kind == b"VP8L"))
    if kind == b"VP8 ":
        content[26:30] = struct.pack("<HH", 16000, 16000)
    elif kind == b"VP8L":
        content[21:25] = struct.pack("<I", 15999 << 14 | 15999)
    else:
        content[24:30] = struct.pack("<I", 15999)[:3] * 2
    return bytes(content)


def file_of(content: Callable[[], bytes], name: str = "bomb.png") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return make


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.png")
    return folder / "fifo.png"


def linked_to(target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "link.png").symlink_to(target)
        return folder / "link.png"

    return make


def directory(folder: Path) -> Path:
    (folder / "folder.png").mkdir()
    return folder / "folder.png"


def bound_socket(folder: Path) -> Path:
    before = os.getcwd()
    os.chdir(folder)  # the path of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket.png")
    finally:
        os.chdir(before)
    return folder / "socket.png"


def sparse(folder: Path) -> Path:
    """A good image, and a terabyte of nothing behind it."""
    (folder / "sparse.png").write_bytes(saved("PNG"))
    os.truncate(folder / "sparse.png", 10**12)
    return folder / "sparse.png"


PADDING = [b"\xff\xe1\xff\xff" + bytes(65533)] * 40 + [b"\xff" * 1000]
THUMBNAIL = b"\xff\xe1" + struct.pack(">H", 16) + b"Exif\0\0" + b"\xff\xc0\0\x0b\x08\0\x08\0"

CASES: dict[str, Make] = {
    "PNG of 20,000 x 20,000": file_of(lambda: png_bomb(20000)),
    "PNG, a text of a megabyte first": file_of(lambda: png_bomb(20000, chunk(b"tEXt", b"a\0" + b"b" * 2**20))),
    "APNG": file_of(lambda: png_bomb(20000, chunk(b"acTL", struct.pack(">II", 1, 0)))),
    "PNG of 2^31 x 2^31": file_of(lambda: png_bomb(8).replace(struct.pack(">II", 8, 8), b"\x7f\xff\xff\xff" * 2)),
    "PNG without a header": file_of(lambda: png_bomb(20000).replace(b"IHDR", b"IHDS")),
    "PNG with two headers": file_of(
        lambda: png_bomb(8, chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)))
    ),
    "JPEG": file_of(lambda: jpeg_bomb(), "bomb.jpg"),
    "JPEG, progressive": file_of(lambda: jpeg_bomb(progressive=True), "bomb.jpg"),
    "JPEG, padded by 2.6 MB": file_of(lambda: jpeg_bomb(*PADDING), "bomb.jpg"),
    "JPEG with a small thumbnail first": file_of(lambda: jpeg_bomb(THUMBNAIL), "bomb.jpg"),
    "JPEG with a small frame first": file_of(
        lambda: jpeg_bomb(b"\xff\xc0\0\x11\x08\0\x08\0\x08\x03\1\x22\0\2\x11\1\3\x11\1"), "bomb.jpg"
    ),
    "JPEG of nothing but markers": file_of(lambda: b"\xff\xd8" + b"\xff\xd0" * 10**7, "bomb.jpg"),
    "JPEG of nothing but padding": file_of(lambda: b"\xff\xd8" + b"\xff" * 10**7 + b"\0", "bomb.jpg"),
    **{
        f"WebP, {kind.decode()}": file_of(lambda kind=kind: webp_bomb(kind), "bomb.webp")
        for kind in (b"VP8 ", b"VP8L", b"VP8X", b"ANIM")
    },
    "GIF": file_of(lambda: saved("GIF")[:6] + b"\xff" * 4 + saved("GIF")[10:], "bomb.jpg"),
    "FIFO": fifo,
    "device without an end": linked_to("/dev/zero"),
    "terminal": linked_to("/dev/tty"),
    "socket": bound_socket,
    "directory": directory,
    "dangling link": linked_to("nowhere.png"),
    "link to itself": linked_to("link.png"),
    "sparse file of a terabyte": sparse,
}
CONTROLS: dict[str, Make] = {
    "PNG": file_of(lambda: png_bomb(2000), "good.png"),
    "PNG, a text of a megabyte first": file_of(lambda: png_bomb(64, chunk(b"tEXt", b"a\0" + b"b" * 2**20)), "good.png"),
    "JPEG": file_of(lambda: saved("JPEG"), "good.jpg"),
    "JPEG, padded": file_of(lambda: saved("JPEG")[:2] + b"".join(PADDING) + saved("JPEG")[2:], "good.jpg"),
    "WebP": file_of(lambda: saved("WEBP"), "good.webp"),
}


def failure(make: Make, folder: Path) -> str:
    """What went wrong with a file that has to be refused; empty where it was refused in time, in one line."""
    path = make(folder)
    started = time.monotonic()
    try:
        image_CHW = decode(path)
    except OfframpError as error:
        seconds = time.monotonic() - started
        if seconds > SECONDS:
            return f"refused after {seconds:.1f} s"
        return "" if str(path) in str(error) and "\n" not in str(error) else f"refused with: {error}"
    return f"read, {tuple(image_CHW.shape)}"
