"""Images that would fill the memory or take minutes are refused by their header; odd but honest ones are answered."""

import asyncio
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.serve.conftest import INPUTS, Serving, picture, serving

from offramp.serve.decoding import Decoder
from offramp.serve.limits import Limits, RequestError

HOSTILE = Path(__file__).parents[1] / "hostile" / "images.py"


@pytest.fixture(scope="module")
def hostile(script: Callable[[Path], ModuleType]) -> Any:
    return script(HOSTILE)


BOMBS: dict[str, Callable[[Any], bytes]] = {
    "png": lambda h: h.png_bomb(20_000),
    "jpeg": lambda h: h.jpeg_bomb(),
    "progressive jpeg": lambda h: h.jpeg_bomb(progressive=True),
    "webp": lambda h: h.webp_bomb(b"VP8 "),
    "lossless webp": lambda h: h.webp_bomb(b"VP8L"),
    "webp with a canvas": lambda h: h.webp_bomb(b"VP8X"),
    "animated webp": lambda h: h.webp_bomb(b"ANIM"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_by_its_header(kind: str, hostile: Any, shared: Serving) -> None:
    content = BOMBS[kind](hostile)
    shared.app._decoder._decoded, decoded = refuse_to_decode, shared.app._decoder._decoded  # type: ignore[method-assign]
    try:
        status, answer = shared.predict(content)
    finally:
        shared.app._decoder._decoded = decoded  # type: ignore[method-assign]
    assert status == 413
    assert "more than 25 million" in answer["error"]


def refuse_to_decode(*_: Any) -> Any:
    raise AssertionError("it was decoded")


def test_without_the_limit_a_bomb_is_decoded(hostile: Any) -> None:
    content = hostile.png_bomb(4_000)  # 2 kB
    with serving(limits=Limits(max_megapixels=1)) as server:
        assert server.predict(content)[0] == 413
    with serving(limits=Limits(max_megapixels=1000)) as server:
        assert server.predict(content)[0] == 200  # 16 megapixels: 48 MB for 2 kB


def test_a_jpeg_in_thousands_of_scans_is_refused(shared: Serving) -> None:
    """Of few bytes and pixels; each scan takes as long as the picture."""
    content = picture(size=(64, 64), kind="JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    status, answer = shared.predict(content[:-2] + scan * 2000 + content[-2:])
    assert status == 422
    assert "scans" in answer["error"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_png_files_of_any_depth_are_answered(mode: str, shared: Serving) -> None:
    if mode == "I;16":
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.new("I;16", (8, 8), 30_000).save(file, "PNG")
        content = file.getvalue()
    else:
        content = picture(mode=mode)
    assert shared.predict(content)[0] == 200


def test_of_an_animation_nothing_is_guessed(shared: Serving) -> None:
    from PIL import Image

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    status, answer = shared.predict(picture(kind="WEBP", save_all=True, append_images=frames), "image/webp")
    assert status == 422
    assert "nimat" in answer["error"]
    status, _ = shared.predict(picture(save_all=True, append_images=frames))  # a PNG file has a first picture
    assert status == 200


@pytest.mark.parametrize("cut", [10, 24, 30, 60, -20])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_a_line(kind: str, cut: int, shared: Serving) -> None:
    status, answer = shared.predict(picture(kind=kind, size=(40, 40))[:cut])
    assert status in (415, 422)
    assert answer.keys() == {"error"}


def test_a_header_that_lies_is_refused(shared: Serving) -> None:
    content = bytearray(picture(size=(40, 40)))
    content[16:24] = struct.pack(">II", 3, 3)
    assert shared.predict(bytes(content))[0] == 422


def test_the_content_decides_and_not_what_it_is_called(shared: Serving) -> None:
    assert shared.predict(picture(kind="WEBP"), "image/png")[0] == 200
    assert shared.predict(picture(), "application/octet-stream")[0] == 200
    assert shared.predict(b"%PDF-1.4", "image/png")[0] == 415


def test_as_many_threads_as_were_asked_for() -> None:
    async def all_of(decoder: Decoder) -> set[str]:
        names: set[str] = set()
        decoded = decoder._decoded

        def noted(*arguments: Any) -> Any:
            names.add(threading.current_thread().name)
            return decoded(*arguments)

        decoder._decoded = noted  # type: ignore[method-assign]
        await asyncio.gather(*(decoder.decode(picture(size=(400, 400)), INPUTS) for _ in range(20)))
        return names

    decoder = Decoder(Limits(), 2)
    names = asyncio.run(all_of(decoder))
    assert len(names) <= 2
    assert threading.current_thread().name not in names  # the loop goes on meanwhile
    decoder.close()
    with pytest.raises(RequestError, match="PNG, JPEG or WebP"):
        asyncio.run(decoder.decode(b"", INPUTS))
