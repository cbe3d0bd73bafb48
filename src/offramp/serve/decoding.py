"""From the content of an image file to what the network sees, in few threads, after the header was looked at."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from offramp.data.headers import size_of
from offramp.data.inputs import Inputs
from offramp.errors import OfframpError
from offramp.serve.limits import Limits, RequestError

_AT_ONCE = 2**14  # pixels, of which an image takes less than handing it to a thread and back
_BYTES_AT_ONCE = 2**16


class Decoder:
    """Decodes at most `threads` images at once, the smallest ones where it is called."""

    def __init__(self, limits: Limits, threads: int) -> None:
        import torchvision.io  # noqa: F401 - half a second, and decoding the first image would take it

        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, "decode", initializer=torch.set_num_threads, initargs=(1,))

    async def decode(self, content: bytes, inputs: Inputs) -> Tensor:
        """The image as the network sees it.

        Raises:
            RequestError: No image of an allowed format, more pixels than it may have (both are seen before anything is
                decoded), or one that is damaged.
        """
        size = size_of(content)
        if size is None:
            raise RequestError(415, "format", "An image must be a PNG, JPEG or WebP file.")
        if math.prod(size) > self._limits.max_megapixels * 1e6:
            line = f"The image has {size[0]} times {size[1]} pixels, more than {self._limits.max_megapixels:g} million."
            raise RequestError(413, "pixels", line)
        if math.prod(size) <= _AT_ONCE and len(content) <= _BYTES_AT_ONCE:
            return self._decoded(content, inputs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decoded, content, inputs)

    def close(self) -> None:
        """End the threads; what waits for one is given up."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _decoded(self, content: bytes, inputs: Inputs) -> Tensor:
        try:
            return inputs.read_content(bytearray(content), "The image", max_megapixels=self._limits.max_megapixels)
        except OfframpError as error:
            line = str(error).removesuffix(" Mend, replace or remove it.")
            raise RequestError(422, "image", line) from error
