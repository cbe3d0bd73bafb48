"""A network run by onnxruntime: a session for each stage and each exit, given torch's tensors without copying them.

B images, K exits, C outputs of an exit. Each session has threads of its own, which sleep when there is nothing to do:
the one pool that all could share spins, and its spinning cannot be turned off from Python (39 against 10 ms of the
processor for one call every 50 ms: docs/LOG.md, 2026-11-26). Memory comes from one pool for all sessions, which grows
with the largest number of rows that it meets and not with how many numbers it meets.
"""

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp import export
from offramp.errors import OfframpError, UsageError
from offramp.network import Carry, EarlyExitNet
from offramp.runtime import kept
from offramp.runtime.form import Form, Program

ROUNDING = 1e-3  # of a class's largest logit: further from the network's own, a session is not the network
NOISE = (3, 1)  # images of noise on which they are compared, a batch and one alone


def program(network: EarlyExitNet, form: Form, device: torch.device | None = None) -> Program:
    """A network in a form, run by what the form says."""
    return (Program if form.backend == "torch" else Sessions)(network, form, device)


class Sessions(Program):
    """A `Program` whose stages and exits are sessions of onnxruntime: on the processor, in float32.

    They are made from the files of `export.stages`, which are kept on this machine, with as many threads as torch has
    then. Answers that a session gives belong to whoever asked: the next call does not touch them.

    Args:
        network: Stays as it is.
        form: One whose backend is onnxruntime.
        device: The network's own if None.

    Raises:
        UsageError: onnxruntime is not installed; another device than the CPU; a network in another precision, that does
            not say which images it is for, or that cannot be exported (which part, and why); answers that are not the
            network's.
        OfframpError: Files that onnxruntime can load or run none of.
    """

    def __init__(self, network: EarlyExitNet, form: Form, device: torch.device | None = None) -> None:
        parameter = next(network.parameters(), torch.empty(0))
        self.form, self.dtype = form, torch.float32
        self.device = device or parameter.device
        self.num_exits, self.num_classes = network.num_exits, network.num_classes
        self.image_shape = network.image_shape
        _check(network, self.device, parameter.dtype)
        loaded = _of(network)
        self._loaded = loaded  # as long as one program has them, others of the same weights can
        self._stages: list[Callable[..., Any]] = list(loaded.stages)
        self._heads: list[Callable[..., Any]] = [_only(head) for head in loaded.exits]
        self._reads = loaded.reads


def _check(network: EarlyExitNet, device: torch.device, dtype: torch.dtype) -> None:
    _runtime()
    if device.type != "cpu":
        raise UsageError(f"onnxruntime runs on the CPU here, not on {device}: leave the device to backend='torch'.")
    if dtype != torch.float32:
        raise UsageError(f"onnxruntime computes in float32, and the network in {dtype}: give it network.float().")
    if network.image_shape is None:
        raise UsageError(
            "onnxruntime's files are made for images of one shape, and this network does not say which: set "
            "network.image_shape to (channels, height, width)."
        )


class Loaded:
    """The sessions of a network.

    Args:
        files: Of the stages and exits.
        threads: Of each session.

    Raises:
        OfframpError: A file that onnxruntime cannot load.
    """

    def __init__(self, files: export.Stages, threads: int) -> None:
        before: Sequence[str] = ("images",)
        stages = []
        for stage in files.stages:
            wanted = [(before.index(name), name) for name in stage.inputs]
            stages.append(_Session(files.folder / stage.file, wanted, stage.outputs, threads))
            before = stage.outputs
        self.stages = tuple(stages)
        self.exits = tuple(
            _Session(files.folder / one.file, [(0, one.input)], [one.output], threads) for one in files.exits
        )
        self.reads = tuple(one.reads for one in files.exits)

    def logits(self, images_BCHW: Tensor) -> list[Tensor]:
        """Logits `[B, C]` of each exit."""
        carry: Carry = (images_BCHW,)
        logits: list[Tensor] = []
        for stage, head, reads in zip(self.stages, self.exits, self.reads, strict=True):
            carry = stage(*carry)
            logits += head(carry[reads])
        return logits


class _Session:
    """One file, called with the tensors of a carry."""

    def __init__(self, file: Path, wanted: Sequence[tuple[int, str]], outputs: Sequence[str], threads: int) -> None:
        runtime, options = _runtime(), _options(threads)
        try:
            self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise OfframpError(f"onnxruntime cannot load {file}: {error}") from error
        self.wanted, self.outputs = tuple(wanted), tuple(outputs)

    def __call__(self, *carry: Tensor) -> Carry:
        """The outputs: arrays over memory that onnxruntime gives away, and tensors over these."""
        given = {name: carry[place].detach().contiguous().numpy() for place, name in self.wanted}
        return tuple(map(torch.from_numpy, self.session.run(self.outputs, given)))


def _only(head: _Session) -> Callable[[Tensor], Tensor]:
    return lambda tensor: head(tensor)[0]


@functools.cache
def _runtime() -> Any:
    """onnxruntime, with the memory that all our sessions share."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("onnxruntime is not installed: pip install 'offramp[onnx]'.") from error
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # Refused, by versions that know only one for a process, where somebody else has made one: that is as good.
    with contextlib.suppress(Exception):
        onnxruntime.create_and_register_allocator(memory, None)
    return onnxruntime


def _options(threads: int) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # a layout of memory remembered for each number of rows
    options.log_severity_level = 3  # errors; they are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


_alive: "weakref.WeakValueDictionary[tuple[Path, int], Loaded]" = weakref.WeakValueDictionary()


def _of(network: EarlyExitNet) -> Loaded:
    """The sessions of a network: those of another program, from files that are kept, or from files made now."""
    folder, threads = kept.place(network), torch.get_num_threads()
    there = _alive.get((folder, threads)) or _from_kept(folder, threads)
    if there is None or not _serves(network, there):
        there = Loaded(kept.make(network, folder), threads)
        try:
            exit = differs(network, there)
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "onnxruntime":  # its errors have no other mark in common
                raise
            raise OfframpError(f"onnxruntime cannot run this network: {error}") from error
        if exit is not None:
            raise UsageError(
                f"Run by onnxruntime, exit {exit + 1} gives other logits than run by torch: use backend='torch' for "
                "this network."
            )
    _alive[folder, threads] = there
    return there


def _from_kept(folder: Path, threads: int) -> Loaded | None:
    """None where there are no files, or damaged ones."""
    files = kept.find(folder)
    try:
        return None if files is None else Loaded(files, threads)
    except OfframpError:
        return None


def _serves(network: EarlyExitNet, loaded: Loaded) -> bool:
    """Whether sessions of kept files answer as the network; a file may load and fail when it is run."""
    try:
        return differs(network, loaded) is None
    except Exception:  # onnxruntime's errors have no common class; the network's own comes again
        return False


@torch.inference_mode()
def differs(network: EarlyExitNet, loaded: Loaded) -> int | None:
    """The first exit (from 0) at which sessions give other logits for noise than the network; None: none does."""
    assert network.image_shape is not None
    twin = copy.deepcopy(network).eval().cpu()  # where sessions run, wherever the network lies
    generator = torch.Generator().manual_seed(0)
    for size in NOISE:
        images_BCHW = torch.randn(size, *network.image_shape, generator=generator)
        pairs = zip(twin.exit_logits(images_BCHW), loaded.logits(images_BCHW), strict=True)
        for k, (wanted_BC, found_BC) in enumerate(pairs):
            most = ROUNDING * wanted_BC[:, : network.num_classes].abs().max().item()
            if not torch.allclose(found_BC, wanted_BC, rtol=ROUNDING, atol=most, equal_nan=True):
                return k
    return None
