"""Stages and exits as packages of torch.export, one each: for servers in Python or C++ that know torch, not offramp.

K exits.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from offramp.data import Inputs
from offramp.errors import UsageError
from offramp.export.graph import BATCH
from offramp.export.stage_files import Stages, check_policy, describe
from offramp.export.tracing import exportable, quiet, reason, stage_names, untraceable
from offramp.network import Carry, EarlyExitNet, as_carry
from offramp.policy import Policy


def torch_packages(
    network: EarlyExitNet,
    folder: str | Path,
    *,
    policy: Policy | None = None,
    inputs: Inputs | None = None,
    image_shape: Sequence[int] | None = None,
    compiled: bool = False,
) -> Stages:
    """Write each stage and each exit as a `.pt2` file, and the `stages.json` that `stages` writes too.

    `torch.export.load(file).module()(*carry)` runs one, on any number of rows: a stage takes its inputs in the order of
    `stages.json`, and gives one tensor, or a tuple. Compiled ones are loaded by `aoti_load_package(file)`
    of `torch._inductor` and belong to this make of processor and this torch.

    Args:
        policy, inputs, image_shape: As of `stages`.
        compiled: Compile ahead of time (AOTInductor); half a minute and more each, with a C++ compiler.

    Raises:
        UsageError: A part that cannot be traced or compiled, no image shape, a policy for another network, no compiler.
    """
    check_policy(network, policy)
    if compiled:
        _need_compiler()
    twin, carries = exportable(network, image_shape)
    ending, packed = ("aoti.pt2", _compiled) if compiled else ("pt2", _saved)
    image_shape = carries[0][0].shape[1:]
    described = describe(network, Path(folder), image_shape, stage_names(carries), ending, policy, inputs)
    described.write([packed(name, program) for name, program in _programs(twin, carries)])
    return described


class _Alone(nn.Module):
    """A stage or an exit, given a carry."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *carry: Tensor) -> Tensor | Carry:
        """What the module gives; a carry of one as a bare tensor."""
        tensors = as_carry(self.module(*carry))
        return tensors if len(tensors) > 1 else tensors[0]


def _programs(twin: EarlyExitNet, carries: Sequence[Carry]) -> Iterator[tuple[str, ExportedProgram]]:
    """Stage 1, exit 1, stage 2 and so on, by name, traced."""
    for k in range(twin.num_exits):
        for name, module, carry in (
            (f"Stage {k + 1}", twin.stages[k], carries[k]),
            (f"Exit {k + 1}", twin.exits[k], (carries[k + 1][twin.reads[k]],)),
        ):
            yield name, _traced(name, module, carry)


def _traced(name: str, module: nn.Module, carry: Carry) -> ExportedProgram:
    rows = torch.export.Dim(BATCH, min=0)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(_Alone(module), carry, dynamic_shapes=(({0: rows},) * len(carry),))
    except Exception as error:
        raise untraceable(name, module, error) from error


def _saved(_: str, program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _compiled(name: str, program: ExportedProgram) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "part.pt2"))
        except Exception as error:
            raise UsageError(f"{name} cannot be compiled ahead of time: {reason(error)}") from error
        return Path(package).read_bytes()


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
    except Exception as error:  # torch has a class of its own for it
        raise UsageError("To compile ahead of time a C++ compiler is needed; install g++, or set CXX.") from error
    if shutil.which(compiler) is None:
        raise UsageError(f"To compile ahead of time a C++ compiler is needed, and there is no {compiler}; install g++.")
