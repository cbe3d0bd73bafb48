"""The size that a header tells is the size that Pillow, and the decoders, tell."""

import io
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from offramp.data.headers import size_of
from offramp.data.inputs import decode
from offramp.errors import OfframpError

KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "RGB", {}),
    ("PNG", "L", {"bits": 8}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("PNG", "P", {"transparency": 3}),
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True}),
    ("JPEG", "CMYK", {"restart_marker_blocks": 1}),
    ("JPEG", "RGB", {"comment": b"\xff\xc0 \xff\xd9" * 2000, "icc_profile": b"\xff\xc2" * 90000}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {}),
    ("WEBP", "RGBA", {"lossless": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
]


def written(kind: str, mode: str, size: tuple[int, int], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (301, 2), (256, 257)])
def test_the_size_is_the_one_that_pillow_tells(kind: str, mode: str, options: Any, size: tuple[int, int]) -> None:
    assert size_of(written(kind, mode, size, **options)) == size[::-1]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_it_is_that_of_the_whole(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    assert size_of(written(kind, "RGB", (20, 10), save_all=True, append_images=frames)) == (10, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_header_says_nothing_or_what_is_decoded_or_is_refused(kind: str, tmp_path: Path) -> None:
    content, numbers = written(kind, "RGB", (30, 20)), random.Random(0)
    path, read = tmp_path / "image", 0
    for _ in range(400):
        damaged = bytearray(content[: numbers.randrange(len(content)) if numbers.random() < 0.2 else None])
        for _ in range(numbers.randrange(3)):
            if damaged:
                damaged[numbers.randrange(min(len(damaged), 60))] = numbers.randrange(256)
        path.write_bytes(damaged)
        try:
            shape = tuple(decode(path).shape[1:])
        except OfframpError:
            continue
        read += 1
        assert shape == size_of(damaged)
    assert read


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a\xff\xff\xff\xff", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF    WEBPVP8 "]
)
def test_where_there_is_none_nothing_is_told(content: bytes) -> None:
    assert size_of(content) is None
