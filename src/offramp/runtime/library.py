"""A network run by a library that reads ONNX: what the backends for CPUs have in common.

B images, K exits, C outputs of an exit. The library is given every run of stages with the exit at its end as one model,
and the stages up to an exit as another; each is compiled when it is first run.
"""

import contextlib
import copy
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.errors import OfframpError, UsageError, first_line
from offramp.export import Stages
from offramp.export.chain import Reading, chain
from offramp.network import Carry, EarlyExitNet
from offramp.runtime import file_cache
from offramp.runtime.program import Form, Program

CLOSE = {"float32": 1e-3, "bf16": 0.1}  # of a class's largest logit: further off, it is not the network
NOISE = (4, 1)  # images of noise on which they are compared, a batch and one alone
COMPILED = 512  # models kept: 14 numbers of rows for 7 segments, with the exit and without, come to 196

Model = Callable[[Carry], tuple[Tensor, ...]]


class Segment(NamedTuple):
    """Stages `first` to `last`, with the exit behind them or not, and what they pass on or not."""

    first: int
    last: int
    exit: bool
    carry: bool


class LibraryProgram(Program):
    """A network as models that a library compiles from ONNX; on the CPU.

    Calls from several threads are allowed. A NaN or an infinite value in an image makes its logits NaN: libraries join
    ReLU to convolutions in ways that turn NaN into 0, so a mark for each image goes with the carry, as its last tensor.

    Raises:
        UsageError: ONNX is not installed; another device than the CPU; a network in another precision, that does not
            say which images it is for, or that cannot be exported (which part, and why); answers that are not the
            network's.
        OfframpError: What the library cannot load or run.
    """

    has_own_threads = True

    def __init__(self, network: EarlyExitNet, form: Form, device: torch.device | None) -> None:
        super().__init__(network, form, device)
        self._check(network)
        self._reads, self._lock = network.reads, threading.RLock()
        if form.precision == "int8":  # noise, which scales are not made for, tells nothing of it
            files = file_cache.find_int8(network)
            self._take(files)
            self.scales = file_cache.scales_of(files)
            return
        folder = file_cache.folder_for(network)
        stored = file_cache.find(folder)
        if stored is None or not self._serves(stored, network):
            self._take(file_cache.make(network, folder))
            if (exit := self._differs(network)) is not None:
                raise UsageError(
                    f"Run by {form}, exit {exit + 1} gives other logits than run by torch: use backend='torch' for "
                    "this network."
                )

    def _serves(self, files: Stages, network: EarlyExitNet) -> bool:
        """Whether files that were kept are the network's, as far as noise tells."""
        try:
            self._take(files)
            return self._differs(network) is None
        except OfframpError:
            return False

    def _take(self, files: Stages) -> None:
        self._parts = files.parts()
        self._models: OrderedDict[tuple[Segment, int | None], Model] = OrderedDict()

    @abstractmethod
    def _compile(self, onnx: bytes, segment: Segment, rows: int | None) -> Model:
        """A model for so many rows, or for any: from the tensors of a carry that it reads to tensors of its own."""

    @abstractmethod
    def _is_its_error(self, error: Exception) -> bool:
        """Whether an error is the library's: libraries have no common class for theirs."""

    def _check(self, network: EarlyExitNet) -> None:
        name, dtype = self.form.backend, next(network.parameters(), torch.empty(0)).dtype
        if self.device.type != "cpu":
            raise UsageError(f"{name} runs on the CPU here, not on {self.device}: leave the device to backend='torch'.")
        if dtype != torch.float32:
            raise UsageError(f"{name} is given a network in float32, not in {dtype}: call network.float() first.")
        if self.image_shape is None:
            raise UsageError(
                f"{name}'s models are made for images of one shape, and this network does not say which: set "
                "network.image_shape to (channels, height, width)."
            )

    def _enter(self, images_BCHW: Tensor) -> Carry:
        images_BCHW = images_BCHW.detach().float().contiguous()
        return images_BCHW, images_BCHW.flatten(1).sum(1).mul_(0.0)

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        """See `Program.segment`."""
        *maps, mark_B = carry
        outputs = self._run(Segment(first, last, head, True), tuple(maps))
        if not head:
            return None, (*outputs, mark_B)
        return outputs[0].add_(mark_B[:, None]), (*outputs[1:], mark_B)

    def straight(self, images_BCHW: Tensor, exit: int) -> Tensor:
        """See `Program.straight`."""
        images_BCHW, mark_B = self.enter(images_BCHW)
        (logits_BC,) = self._run(Segment(0, exit, True, False), (images_BCHW,))
        return logits_BC.add_(mark_B[:, None])

    def _run(self, segment: Segment, maps: Carry) -> tuple[Tensor, ...]:
        return self._call(segment, None, maps)

    def _call(self, segment: Segment, rows: int | None, maps: Carry) -> tuple[Tensor, ...]:
        with self._one_line_errors(f"stages {segment.first + 1} to {segment.last + 1} of this network"):
            return self._model(segment, rows)(maps)

    @contextlib.contextmanager
    def _one_line_errors(self, what: str) -> Iterator[None]:
        """The library's errors within it as one line."""
        try:
            yield
        except Exception as error:
            if not self._is_its_error(error):
                raise
            raise OfframpError(f"{self.form.backend} cannot run {what}: {first_line(error)}.") from error

    def _model(self, segment: Segment, rows: int | None) -> Model:
        """The model, compiled now if it was not; those used longest ago are let go."""
        key = segment, rows
        with self._lock:
            if key not in self._models:
                self._models[key] = self._compile(self._onnx(segment), segment, rows)
                if len(self._models) > COMPILED:
                    self._models.popitem(last=False)
            self._models.move_to_end(key)
            return self._models[key]

    def _onnx(self, segment: Segment, reading: Reading | None = None) -> bytes:
        first, last, exit, carry = segment
        model = chain(self._parts, self._reads, first, last, exit=exit, carry=carry, reading=reading)
        return bytes(model.SerializeToString())

    def _places(self, segment: Segment) -> list[int]:
        """Which tensors of the carry a segment reads."""
        first = segment.first
        before = self._parts.stages[first - 1].outputs if first else ("images",)
        return [before.index(name) for name in self._parts.stages[first].inputs]

    @torch.inference_mode()
    def _differs(self, network: EarlyExitNet) -> int | None:
        """The first exit (from 0) with other logits for noise than the network's; None: there is none."""
        assert self.image_shape is not None
        twin = copy.deepcopy(network).eval().cpu()
        generator = torch.Generator().manual_seed(0)
        close = CLOSE[self.form.precision]
        for size in NOISE:
            images_BCHW = torch.randn(size, *self.image_shape, generator=generator)
            pairs = zip(twin.exit_logits(images_BCHW), self.logits(images_BCHW), strict=True)
            for k, (wanted_BC, found_BC) in enumerate(pairs):
                most = close * wanted_BC[:, : self.num_classes].abs().max().item()
                if not torch.allclose(found_BC, wanted_BC, rtol=close, atol=most, equal_nan=True):
                    return k
        return None
