"""The HTTP side of benchmarks/serving.py: the application of `offramp serve`, in uvicorn, with any scheduler behind it.

It runs in threads of the benchmark's own process; what offers load (`load.py`) is another one.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import msgspec
import torch
from torch import Tensor
from torchvision.io import encode_png

from offramp.data import Inputs
from offramp.network import Carry, EarlyExitNet
from offramp.runtime.program import Program
from offramp.serve.app import App
from offramp.serve.card import Card
from offramp.serve.connection import Connection
from offramp.serve.gate import LOOPBACK, Gate
from offramp.serve.limits import Limits
from offramp.serve.metrics import Metrics
from offramp.serve.scheduler import Scheduler
from offramp.serve.server import Server, address, listen


@dataclass
class Used:
    """The processor's seconds of the threads that serve, by what they were spent on.

    Attributes:
        loop: Everything in the event loop, with the two that follow.
        parsing: Of that, reading from sockets aside, what the connection does with what came in.
        decoding: Of that, image files.
        scheduler: The scheduler's thread.
        segments: Of that, in the network. Threads that the network has of its own are in none of these.
    """

    loop: float = 0.0
    parsing: float = 0.0
    decoding: float = 0.0
    scheduler: float = 0.0
    segments: float = 0.0

    @property
    def beside(self) -> float:
        """Everything that is not the network."""
        return self.loop + self.scheduler - self.segments


class Timed(Program):
    """A network that counts the processor's seconds in its segments."""

    def __init__(self, program: Program, used: Used) -> None:
        vars(self).update(vars(program))
        self.has_own_threads = program.has_own_threads  # type: ignore[misc]  # as that of the class
        self.program, self.used = program, used

    def _enter(self, images_BCHW: Tensor) -> Carry:
        return self.program._enter(images_BCHW)

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        started = time.thread_time()
        try:
            return self.program.segment(first, last, carry, head=head)
        finally:
            self.used.segments += time.thread_time() - started

    straight = single = None  # type: ignore[assignment]  # nobody asks


class Front:
    """What all disciplines have before them: limits and gate as `offramp serve` has them, and PNG files to be sent."""

    def __init__(self, network: EarlyExitNet, images: int) -> None:
        assert network.image_shape is not None
        channels, height, width = network.image_shape
        names = tuple(map(str, range(network.num_classes)))
        inputs = Inputs(names, (channels, height, width), (0.5,) * channels, (0.25,) * channels, "central-fit")
        self.card, self.limits, self.gate = Card(inputs), Limits(), Gate(None, LOOPBACK)
        pixels = torch.randint(0, 256, (images, channels, height, width), generator=torch.Generator().manual_seed(1))
        self.files = [encode_png(image.to(torch.uint8)).numpy().tobytes() for image in pixels]

    def images(self) -> Tensor:
        """As the network sees them."""
        return torch.stack([self.card.inputs.read_content(bytearray(content), "It") for content in self.files])


@contextmanager
def serving(front: Front, scheduler: Scheduler, used: Used) -> Iterator[str]:
    """The application before a scheduler; where it listens."""
    listening = listen("127.0.0.1", 0, front.limits.max_connections)
    app = App(scheduler, front.card, limits=front.limits, gate=front.gate, metrics=Metrics(scheduler.snapshot))
    scheduler._on_batch = app.metrics.batch
    ready = threading.Event()
    server = Server(app, scheduler, grace=5, on_ready=ready.set)

    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    with listening:
        thread.start()
        ready.wait()
        clocks = [time.pthread_getcpuclockid(one.ident or 0) for one in (thread, scheduler._thread)]
        before, used.segments = [time.clock_gettime(clock) for clock in clocks], 0.0
        yield address(listening).removeprefix("http://")
        used.loop, used.scheduler = (
            time.clock_gettime(clock) - then for clock, then in zip(clocks, before, strict=True)
        )
        server.should_exit = True
        thread.join()


@contextmanager
def parts_timed(used: Used) -> Iterator[None]:
    """While entered, parsing and decoding are counted; this takes time itself."""

    def timed(part: str, function: Any) -> Any:
        def call(*words: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*words)
            finally:
                setattr(used, part, getattr(used, part) + time.thread_time() - started)

        return call

    from offramp.serve.decoding import Decoder

    patched = ((Connection, "data_received", "parsing"), (Decoder, "_decoded", "decoding"))
    before = [getattr(kind, name) for kind, name, _ in patched]
    for (kind, name, part), function in zip(patched, before, strict=True):
        setattr(kind, name, timed(part, function))
    try:
        yield
    finally:
        for (kind, name, _), function in zip(patched, before, strict=True):
            setattr(kind, name, function)


def offer(front: Front, scheduler: Scheduler, used: Used, words: Sequence[str], connections: int | None = None) -> None:
    """Offer load to a scheduler over HTTP; `words` are those of `load.py`."""
    with tempfile.TemporaryDirectory() as folder, serving(front, scheduler, used) as where:
        bodies = Path(folder, "bodies")
        bodies.write_bytes(msgspec.msgpack.encode(front.files))
        command = [sys.executable, str(Path(load.__file__)), where, "--bodies", str(bodies), *words]
        subprocess.run([*command, *([] if connections is None else ["--connections", str(connections)])], check=True)
