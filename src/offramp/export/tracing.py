"""Each stage and each exit of a network as an ONNX model by itself.

K exits. All are traced at once, as one module whose parts share nothing: torch's exporter takes a second for anything,
however small. Then that graph falls apart.
"""

import contextlib
import copy
import importlib
import io
import itertools
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.export.graph import BATCH, IR_VERSION, OPSET, Part, Parts, checked, rename
from offramp.graphs.exit_writes import check_skippable
from offramp.graphs.folding import fold
from offramp.network import Carry, EarlyExitNet, as_carry

if TYPE_CHECKING:
    import onnx


def need_onnx() -> None:
    """Refuse to go on without the packages that write ONNX."""
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"ONNX needs {name}, which is not installed: pip install 'offramp[onnx]'.") from error


def exportable(network: EarlyExitNet, image_shape: Sequence[int] | None = None) -> tuple[EarlyExitNet, list[Carry]]:
    """What is exported: a copy on the CPU, in float32 and evaluation mode. And an example of each carry, images first.

    Batch norm is folded before anything is traced: the exporter would do it after, in half as long again.
    """
    shape = network.shape_of_images(image_shape)
    twin = copy.deepcopy(network).eval().requires_grad_(False).to("cpu", torch.float32)
    check_skippable(twin, shape)
    fold(twin)
    generator = torch.Generator().manual_seed(0)
    carries: list[Carry] = [(torch.rand(2, *shape, generator=generator),)]
    with torch.no_grad():
        for k in range(twin.num_exits):
            carries.append(twin.run_stage(k, carries[-1]))
    return twin, carries


def parts(network: EarlyExitNet, image_shape: Sequence[int] | None = None) -> Parts:
    """A network's stages and exits as ONNX models; `image_shape` is `(C, H, W)`, where the network does not say it.

    Raises:
        UsageError: ONNX is not installed, a part that cannot be traced or uses an operator that ONNX lacks (named), no
            image shape, an exit that writes into a map that a later part reads.
    """
    need_onnx()
    twin, carries = exportable(network, image_shape)
    modules: list[tuple[str, nn.Module, Carry]] = []
    for k in range(twin.num_exits):
        modules.append((f"stage {k + 1}", twin.stages[k], carries[k]))
    for k in range(twin.num_exits):
        modules.append((f"exit {k + 1}", twin.exits[k], (carries[k + 1][twin.reads[k]],)))
    names = [*stage_names(carries), *[(("map",), ("logits",))] * twin.num_exits]
    try:
        with torch.no_grad(), quiet():
            whole = _whole(modules)
    except Exception as error:
        # Which part was it? Each by itself knows.
        for name, module, carry in modules:
            _refuse(name, module, carry)
        raise error
    split = _split(whole, names)
    channels, height, width = carries[0][0].shape[1:]
    return Parts(split[: twin.num_exits], split[twin.num_exits :], (channels, height, width))


def stage_names(carries: Sequence[Carry]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Inputs and outputs of each stage: what comes in is called as the stage before calls it."""
    names = [("images",), *(tuple(f"carry_{k}_{i}" for i in range(len(c))) for k, c in enumerate(carries[1:], 1))]
    return list(itertools.pairwise(names))


class _Apart(nn.Module):
    """Modules side by side, each with inputs of its own."""

    def __init__(self, modules: Sequence[nn.Module], num_inputs: Sequence[int]) -> None:
        super().__init__()
        self.apart = nn.ModuleList(modules)
        self.num_inputs = tuple(num_inputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All their outputs."""
        outputs: list[Tensor] = []
        for module, count in zip(self.apart, self.num_inputs, strict=True):
            outputs += as_carry(module(*tensors[:count]))
            tensors = tensors[count:]
        return tuple(outputs)


def _whole(modules: Sequence[tuple[str, nn.Module, Carry]]) -> "onnx.ModelProto":
    """All parts in one graph; input i of part p is called `p:i`, output i `p>i`."""
    apart = _Apart([module for _, module, _ in modules], [len(carry) for _, _, carry in modules])
    examples, axes, inputs, outputs = [], [], [], []
    for p, (_, module, carry) in enumerate(modules):
        axis = torch.export.Dim(f"{BATCH}_{p}", min=0)  # one for each part: their shapes have nothing in common either
        examples += [tensor.clone() for tensor in carry]  # one tensor passed twice would be one input
        axes += [{0: axis}] * len(carry)
        inputs += [f"{p}:{i}" for i in range(len(carry))]
        outputs += [f"{p}>{i}" for i in range(len(as_carry(module(*carry))))]
    exported = torch.export.export(apart, tuple(examples), dynamic_shapes=(tuple(axes),))
    program = torch.onnx.export(
        exported,
        (),
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's exporter and those it calls have nothing to say to our users: what fails, raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _refuse(name: str, module: nn.Module, carry: Carry) -> None:
    """Raise the reason why a part cannot be exported, if it is the one."""
    try:
        with torch.no_grad(), quiet():
            _whole([(name, module, carry)])
    except Exception as error:
        message = "\n".join(str(cause) for cause in _causes(error))
        lacking = re.search(r"No ONNX function found for \S*?'?(\w+\.[\w.]+)", message)
        if lacking:
            raise UsageError(
                f"{name.capitalize()} uses the operator {lacking[1]}, which ONNX lacks. Write it with others."
            ) from error
        raise untraceable(name.capitalize(), module, error) from error


def untraceable(name: str, module: nn.Module, error: BaseException) -> UsageError:
    """What to raise where torch.export cannot trace a part. Where numbers decide, torch speaks of its symbols."""
    if any("data-dependent" in str(cause) for cause in _causes(error)):
        return UsageError(
            f"{name} cannot be traced: its control flow or a shape depends on values (module "
            f"{_innermost(module, error)}). Write it with torch.where."
        )
    return UsageError(f"{name} cannot be traced: {reason(error)}")


def _innermost(module: nn.Module, error: BaseException) -> str:
    """The module within `module` in whose own code an error was raised, by name and class."""
    names = {id(inner): f"{name}, {type(inner).__name__}" for name, inner in module.named_modules() if name}
    innermost = type(module).__name__
    for cause in _causes(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            innermost = names.get(id(frame.f_locals.get("self")), innermost)
    return innermost


def reason(error: BaseException) -> str:
    """The first line of what an error comes from."""
    lines = (line.strip() for cause in reversed([*_causes(error)]) for line in str(cause).splitlines())
    return next(filter(None, lines), type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _split(whole: "onnx.ModelProto", names: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> tuple[Part, ...]:
    """The parts of a graph made by `_whole`, with inputs and outputs by their `names`."""
    from onnx.utils import Extractor

    extractor = Extractor(whole)
    inputs, outputs = ([value.name for value in side] for side in (whole.graph.input, whole.graph.output))
    split = []
    for p, (ins, outs) in enumerate(names):
        before = [name for name in inputs if name.startswith(f"{p}:")]
        after = [name for name in outputs if name.startswith(f"{p}>")]
        model = extractor.extract_model(before, after)
        _call(model.graph, dict(zip([*before, *after], [*ins, *outs], strict=True)))
        used = {name for node in model.graph.node for name in node.input}
        kept = [value for value in model.graph.input if value.name in used]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        _tidy(model)
        split.append(Part(model, tuple(value.name for value in kept), outs))
    return tuple(split)


def _call(graph: "onnx.GraphProto", new: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = new[value.name]
    rename(graph.node, lambda name: new.get(name, name))


def _tidy(model: "onnx.ModelProto") -> None:
    """Leave out where in whose source each node came from; name the first axis; know all shapes."""
    model.ir_version, model.producer_name = IR_VERSION, "offramp"
    graph = model.graph
    del graph.value_info[:]
    graph.ClearField("metadata_props")
    graph.name = "offramp"
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and dimensions[0].dim_param:
            dimensions[0].dim_param = BATCH
    model.CopyFrom(checked(model))
