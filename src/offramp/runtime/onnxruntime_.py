"""A network run by onnxruntime, on a CPU, in float32; it is given torch's tensors without copying them.

Each session has threads of its own, which sleep when there is nothing to do: the one pool that all could share spins,
and its spinning cannot be turned off from Python (39 against 10 ms of the processor for one call every 50 ms:
docs/LOG.md, 2026-11-26). Memory comes from one pool for all sessions, which grows with the largest number of rows that
it meets and not with how many numbers it meets.
"""

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet
from offramp.runtime.library import LibraryProgram, Model, Segment
from offramp.runtime.program import Form


@functools.cache
def onnxruntime() -> Any:
    """onnxruntime, with the memory that all our sessions share."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("onnxruntime is not installed: pip install 'offramp[onnx]'.") from error
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # Refused, by versions that know only one for a process, where other code has made one: that is as good.
    with contextlib.suppress(Exception):
        onnxruntime.create_and_register_allocator(memory, None)
    return onnxruntime


class OnnxRuntime(LibraryProgram):
    """A `LibraryProgram` of onnxruntime, with torch's number of threads; a model takes any number of rows."""

    def __init__(self, network: EarlyExitNet, form: Form, device: torch.device | None = None) -> None:
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = False  # a layout of memory remembered for each number of rows
        options.log_severity_level = 3  # errors; they are raised as well
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        self._options = options
        super().__init__(network, form, device)

    def _is_its_error(self, error: Exception) -> bool:
        return type(error).__module__.partition(".")[0] == "onnxruntime"

    def _compile(self, onnx: bytes, segment: Segment, rows: int | None) -> Model:
        session = onnxruntime().InferenceSession(onnx, self._options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        places = self._places(segment)

        def run(carry: Carry) -> tuple[Tensor, ...]:
            inputs = {
                name: carry[place].detach().contiguous().numpy() for name, place in zip(names, places, strict=True)
            }
            return tuple(map(torch.from_numpy, session.run(None, inputs)))

        return run
