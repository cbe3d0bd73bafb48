"""onnxruntime-web, what runs ONNX files in a browser: two files out of its package on npm, of one pinned version.

Its build for WebAssembly alone, which one thread runs: it needs no headers of the server that the page comes from.
"""

import base64
import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from offramp.errors import OfframpError, UsageError
from offramp.storage import kept_on_this_machine, write_atomically
from offramp.terminal import say

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's integrity
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
LICENCE = """onnxruntime-web, https://github.com/microsoft/onnxruntime

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_BLOCK = 2**20
_SECONDS = 30.0  # without a byte


def web_runtime(folder: str | Path | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web by name, with its licence.

    Args:
        folder: Where they are; by default what was downloaded before, else they are downloaded: 33 MB, said before.

    Raises:
        UsageError: `folder` lacks one of them.
        OfframpError: No network, or what was downloaded is another file.
    """
    kept = Path(folder).expanduser() if folder is not None else kept_on_this_machine(f"onnxruntime-web-{VERSION}")
    missing = [name for name in FILES if not (kept / name).is_file()]
    if missing and folder is not None:
        raise UsageError(
            f"{kept} lacks {' and '.join(missing)}. They are in package/dist of {URL}, and in "
            "node_modules/onnxruntime-web/dist where npm has installed it."
        )
    if missing:
        say(
            f"Downloading onnxruntime-web {VERSION} from registry.npmjs.org: 33 MB, once; 14 MB of it are kept in "
            f"{kept} and go into the folder."
        )
        for name, content in _downloaded().items():
            write_atomically(kept / name, content)
    return {**{name: (kept / name).read_bytes() for name in FILES}, "LICENSE.txt": LICENCE.encode()}


def _downloaded() -> dict[str, bytes]:
    with tempfile.TemporaryFile() as packed:
        digest = hashlib.sha512()
        try:
            with urllib.request.urlopen(URL, timeout=_SECONDS) as response:
                while block := response.read(_BLOCK):
                    digest.update(block)
                    packed.write(block)
        except (OSError, http.client.HTTPException) as error:  # no network, refused, cut off
            raise OfframpError(
                f"onnxruntime-web is not on this machine and could not be downloaded: {error}. Unpack {URL} where "
                "there is a network, and name its folder package/dist with --runtime."
            ) from error
        if base64.b64encode(digest.digest()).decode() != SHA512:
            raise OfframpError(f"What {URL} gave is not onnxruntime-web {VERSION} as it was published. Try again.")
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            return {name: _member(archive, f"package/dist/{name}") for name in FILES}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None  # the hash says that it is a file
    return file.read()
