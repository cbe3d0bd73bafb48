"""One page to play with a network, whole in one document: it asks no other host for anything, and needs no build.

It speaks to one of two engines: `server`, the HTTP API of the server that it comes from, or `local`, files of stages
beside it, run in the browser by onnxruntime-web.
"""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Literal

PageEngine = Literal["server", "local"]


@functools.cache
def page(engine: PageEngine = "server") -> str:
    """The HTML document. It finds what it needs relative to its own address."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy(engine)}">'
    # In a header this says more; a page on any static host has no header of its own.
    policy = meta if engine == "local" else ""
    filled = {"policy": policy, "style": _read("style.css"), "script": _script(engine)}
    document = _read("page.html")
    for name, text in filled.items():
        document = document.replace(f"<!-- {name} -->", text)
    return document


@functools.cache
def content_security_policy(engine: PageEngine = "server") -> str:
    """What the page may do: run its own script and style, known by their hashes, and ask where it comes from.

    The value of a header `Content-Security-Policy`; `frame-ancestors` may be added to it, which only a header can say.
    """
    runs = " 'self' 'wasm-unsafe-eval'" if engine == "local" else ""
    rules = {
        "default-src": "'none'",
        "script-src": _hash(_script(engine)) + runs,
        "style-src": _hash(_read("style.css")),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _script(engine: PageEngine) -> str:
    return _read(f"{engine}.js") + _read("page.js")


@functools.cache
def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
