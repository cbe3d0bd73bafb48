"""A network run by OpenVINO, on a CPU, in float32 or bf16.

B images, K exits, C outputs of an exit, H and W pixels. Models are compiled for a few fixed numbers of rows: then
OpenVINO joins maps without copying them. Between segments maps lie channels innermost and in the precision that is
computed in, as its kernels want them (docs/LOG.md, 2026-11-30: what that is worth).
"""

import functools
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import UsageError
from offramp.export.chain import Reading
from offramp.network import Carry, EarlyExitNet
from offramp.policy import PATIENCE, Measure, Policy
from offramp.runtime.library import LibraryProgram, Model, Segment
from offramp.runtime.plan import SIZES, segments
from offramp.runtime.program import Form, Single
from offramp.runtime.rows import Answers

SINGLES = 16  # networks for single images kept, by measure and exits asked
POOLED = 4  # outputs of one model that are kept to be used again; a stream may hold more
_SEEN = "openvino_tensor"  # what a tensor has that a model has made
_TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "i64": torch.int64, "i32": torch.int32}
_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.int64: np.int64, torch.int32: np.int32}


@functools.cache
def openvino() -> Any:
    """OpenVINO, without its telemetry, which reports that it was imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    try:
        import openvino
    except ImportError as error:
        raise UsageError("OpenVINO is not installed: pip install 'offramp[openvino]'.") from error
    return openvino


@functools.cache
def core() -> Any:
    """What compiles models: one for the process, kept until it ends.

    Each core of OpenVINO 2026.4 sets the stack that the thread's signal handlers run on, and puts back the one that it
    found. Of two that are freed in the order in which they were made, the second puts back the first's, which is
    unmapped by then, and the next signal that has a handler (Ctrl-C, a DataLoader's worker that ends) ends the process.
    """
    return openvino().Core()


class OpenVino(LibraryProgram):
    """A `LibraryProgram` of OpenVINO, with as many threads as torch has when it is made."""

    def __init__(self, network: EarlyExitNet, form: Form, device: torch.device | None = None) -> None:
        core()  # so that a missing package is reported before anything is exported
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if form.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._singles: OrderedDict[tuple[Measure, tuple[int, ...]], _SingleImage] = OrderedDict()
        super().__init__(network, form, device)

    def single(self, policy: Policy, asks: tuple[int, ...]) -> Single | None:
        """See `Program.single`: segments that read their answers themselves, each bound to the memory of the last."""
        if policy.measure.name == PATIENCE:  # it remembers answers
            return None
        with self._lock:
            key = policy.measure, asks
            if key not in self._singles:
                self._singles[key] = self._single_image(policy.measure, asks)
                if len(self._singles) > SINGLES:
                    self._singles.popitem(last=False)
            run = self._singles[key]
        thresholds = [policy.thresholds[k] for k in asks]

        def answer(images_BCHW: Tensor) -> Answers:
            images_BCHW, mark_B = self.enter(images_BCHW)
            with self._one_line_errors("this network"):
                label, k, confidence = run(images_BCHW, mark_B, thresholds)
            return Answers(torch.from_numpy(label), torch.tensor([asks[k]]), torch.from_numpy(confidence))

        return answer

    def _single_image(self, measure: Measure, asks: tuple[int, ...]) -> "_SingleImage":
        models, places = [], []
        for first, last in segments(asks):
            segment = Segment(first, last, True, last < self.num_exits - 1)
            reading = Reading(measure, self.num_classes)
            with self._one_line_errors(f"stages {first + 1} to {last + 1} of this network"):
                models.append(self._compiled(self._onnx(segment, reading), segment, 1, answers=2))
            places.append(self._places(segment))
        return _SingleImage(models, places)

    def _run(self, segment: Segment, maps: Carry) -> tuple[Tensor, ...]:
        """With rows added where there is no model for as many, and in pieces where there are more than any has."""
        rows, most = maps[0].shape[0], SIZES[-1]
        if not segment.carry:  # straight: its number of rows is not rounded
            return self._call(segment, rows if rows in SIZES else None, maps)
        if rows > most:
            pieces = zip(*(torch.split(x, most) for x in maps), strict=True)
            return tuple(map(torch.cat, zip(*(self._run(segment, piece) for piece in pieces), strict=True)))
        size = next(size for size in SIZES if size >= rows)
        if size > rows:
            maps = tuple(torch.cat([x, x.new_zeros(size - rows, *x.shape[1:])]) for x in maps)
        outputs = self._call(segment, size, maps)
        return outputs if size == rows else tuple(x[:rows] for x in outputs)

    def _is_its_error(self, error: Exception) -> bool:
        return type(error) is RuntimeError

    def _compiled(self, onnx: bytes, segment: Segment, rows: int | None, answers: int) -> Any:
        """A model of OpenVINO. The first `answers` outputs, and what it reads beside the carry, lie as they are."""
        model = core().read_model(onnx, b"")
        steps = openvino().preprocess.PrePostProcessor(model)
        if segment.first:  # images lie as they come
            for number in range(len(self._places(segment))):
                self._lay(steps.input(number), model.inputs[number])
        for number, port in enumerate(model.outputs):
            if number >= answers:
                self._lay(steps.output(number), port)
        model = steps.build()
        model.reshape({port: [-1 if rows is None else rows, *_behind_rows(port)] for port in model.inputs})
        return core().compile_model(model, "CPU", self._settings)

    def _compile(self, onnx: bytes, segment: Segment, rows: int | None) -> Model:
        compiled = self._compiled(onnx, segment, rows, answers=int(segment.exit))
        return _Model(compiled, self._places(segment), inner=segment.first > 0, logits=segment.exit)

    def _lay(self, place: Any, port: Any) -> None:
        """Let a map of a carry lie channels innermost, and be in the precision that is computed in."""
        if not port.element_type.is_real():
            return
        if self.dtype == torch.bfloat16:
            place.tensor().set_element_type(openvino().Type.bf16)
        if len(port.partial_shape) == 4:
            place.tensor().set_layout(openvino().Layout("NHWC"))
            place.model().set_layout(openvino().Layout("NCHW"))


class _Model:
    """A compiled model, called with a carry, of which it reads the tensors at `places`; one call at a time.

    What a single image needs of Python takes as long as a stage, so memory is used again: outputs overwrite
    earlier ones to which no tensor refers any more, and a tensor of the model before is handed on as it is.

    Args:
        inner: Whether the maps that it reads lie channels innermost; images do not.
        logits: Whether its first output are logits, which lie as they are.
    """

    def __init__(self, compiled: Any, places: Sequence[int], *, inner: bool, logits: bool) -> None:
        self.request, self.places, self.inner = compiled.create_infer_request(), tuple(places), inner
        self.kinds = [
            _Kind(
                _behind_rows(port),
                _TORCH[port.element_type.get_type_name()],
                turned=len(port.partial_shape) == 4 and bool(n or not logits),
            )
            for n, port in enumerate(compiled.outputs)
        ]
        self.pool: list[_Outputs] = []
        self.last: _Outputs | None = None
        self.bound: list[Any] = [None] * len(self.places)
        self.lock = threading.Lock()

    def __call__(self, carry: Carry) -> tuple[Tensor, ...]:
        """Tensors of as many rows, which are the caller's."""
        inputs = [self._seen(carry[place]) for place in self.places]
        with self.lock:
            for number, x in enumerate(inputs):
                if x is not self.bound[number]:
                    self.request.set_input_tensor(number, x)
            self.bound = inputs
            outputs = self._outputs(carry[0].shape[0])
            if outputs is not self.last:
                for number, x in enumerate(outputs.seen):
                    self.request.set_output_tensor(number, x)
                self.last = outputs
            self.request.infer(share_outputs=True)  # else it would copy all outputs once more
            return outputs.tensors()

    def _seen(self, x: Tensor) -> Any:
        """The tensor's memory as OpenVINO sees it."""
        seen = getattr(x, _SEEN, None)
        if seen is None:
            x = (x.permute(0, 2, 3, 1) if self.inner and x.dim() == 4 else x).contiguous()
            seen = _shared(x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy(), x.dtype)
        return seen

    def _outputs(self, rows: int) -> "_Outputs":
        """Memory for what comes out: some that is free, or new."""
        for outputs in (self.last, *self.pool):
            if outputs is not None and outputs.rows == rows and outputs.is_free():
                return outputs
        outputs = _Outputs(self.kinds, rows)
        if len(self.pool) < POOLED:
            self.pool.append(outputs)
        return outputs


class _SingleImage:
    """A network for one image at a time: each segment reads the memory that the one before it has written.

    Nothing of torch stands between two segments, and Python does no more than compare a confidence with a threshold:
    with the caches full of weights, each thing that it does takes several times what it takes in a loop. One call at
    a time; others wait.

    Args:
        models: Segments of OpenVINO, for one row, whose outputs are label, confidence and the carry.
        places: Which tensors of the carry before it each of them reads.
    """

    def __init__(self, models: Sequence[Any], places: Sequence[Sequence[int]]) -> None:
        self.requests = [model.create_infer_request() for model in models]
        self.lock = threading.Lock()
        self.mark = np.zeros(1, np.float32)
        self.image: Any = None
        self.written: list[list[NDArray[Any]]] = []  # by each segment; OpenVINO does not keep memory that is shared
        carry: list[Any] = []
        for request, model, reads in zip(self.requests, models, places, strict=True):
            for number, place in enumerate(reads if carry else ()):
                request.set_input_tensor(number, carry[place])
            request.set_input_tensor(len(reads), _shared(self.mark, torch.float32))
            dtypes = [_TORCH[port.element_type.get_type_name()] for port in model.outputs]
            self.written.append(
                [
                    np.empty((1, *_behind_rows(port)), _NUMPY[dtype])
                    for port, dtype in zip(model.outputs, dtypes, strict=True)
                ]
            )
            outputs = [_shared(array, dtype) for array, dtype in zip(self.written[-1], dtypes, strict=True)]
            for number, tensor in enumerate(outputs):
                request.set_output_tensor(number, tensor)
            carry = outputs[2:]

    def __call__(
        self, images_BCHW: Tensor, mark_B: Tensor, thresholds: Sequence[float]
    ) -> tuple[NDArray[Any], int, NDArray[Any]]:
        """Label `[1]`, which of the segments has answered, and confidence `[1]`."""
        with self.lock:
            self.image = images_BCHW.numpy()
            self.requests[0].set_input_tensor(0, _shared(self.image, torch.float32))
            self.mark[0] = mark_B
            last = len(self.requests) - 1
            for k, request in enumerate(self.requests):
                request.infer(share_outputs=True)
                label, confidence, *_ = self.written[k]
                if k == last or confidence[0] >= thresholds[k]:
                    break
            return label.copy(), k, confidence.copy()


class _Kind(NamedTuple):
    """An output: its shape behind the rows as it lies in memory, its type, and whether channels lie innermost there."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    turned: bool


class _Outputs:
    """Memory for the outputs of one call, for as long as a tensor over it is held."""

    def __init__(self, kinds: Sequence[_Kind], rows: int) -> None:
        self.kinds, self.rows = kinds, rows
        self.arrays = [np.empty((rows, *kind.shape), _NUMPY[kind.dtype]) for kind in kinds]
        self.seen = [_shared(array, kind.dtype) for array, kind in zip(self.arrays, kinds, strict=True)]
        self.references = self._references()

    def _references(self) -> int:
        return sum(map(sys.getrefcount, self.arrays))

    def is_free(self) -> bool:
        """Whether no tensor over the memory is left."""
        return self._references() == self.references

    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors over the memory."""
        tensors = []
        for array, kind, seen in zip(self.arrays, self.kinds, self.seen, strict=True):
            x = torch.from_numpy(array)
            if kind.dtype == torch.bfloat16:
                x = x.view(torch.bfloat16)
            if kind.turned:
                x = x.permute(0, 3, 1, 2)
            setattr(x, _SEEN, seen)
            tensors.append(x)
        return tuple(tensors)


def _shared(array: NDArray[Any], dtype: torch.dtype) -> Any:
    """The same memory as a tensor of OpenVINO. NumPy has no bf16: its bits are whole numbers there."""
    if dtype == torch.bfloat16:
        return openvino().Tensor(array, list(array.shape), openvino().Type.bf16)
    return openvino().Tensor(array, shared_memory=True)


def _behind_rows(port: Any) -> tuple[int, ...]:
    return tuple(side.get_length() for side in list(port.partial_shape)[1:])
