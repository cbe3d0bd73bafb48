"""A network's parts in int8, and what that costs in answers: measured, not assumed.

B images of a batch, K exits, S images, C outputs of an exit, N classes. Stages and the convolutions of exits are
quantised, tensors between the parts, each exit's last layer and all that makes confidences of logits are not.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.data import Split
from offramp.errors import UsageError
from offramp.export.graph import Part, Parts, checked
from offramp.export.tracing import quiet
from offramp.network import EarlyExitNet
from offramp.policy import CERTIFICATE, Policy

if TYPE_CHECKING:
    import onnx

IN_STAGES = ("Conv", "Gemm", "MatMul", "Relu", "Clip", "Concat", "MaxPool")
IN_EXITS = ("Conv", "Relu", "Clip", "Concat", "MaxPool")  # an exit's Gemm gives the logits
CHUNK = 32  # images run at a time

Carry = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Int8:
    """A network in int8 beside itself in float32, under one policy, on the same images.

    Attributes:
        data: Name of the part of the data set whose images these are.
        accuracy: Of the policy's answers in int8, in percent.
        exits: Accuracy of each exit in int8, if it answered every image, in percent.
        policy: Under which both answered: its `measure` and `thresholds`; None: the last exit answered every image.
        same_exit: Share of the images that leave at the same exit.
        same_answer: Share of those that leave at the same exit with the same class.
        bytes: Of all parts.
    """

    data: str
    images: int
    accuracy: float
    accuracy_float32: float
    exits: tuple[float, ...]
    exits_float32: tuple[float, ...]
    policy: Mapping[str, Any] | None
    same_exit: float
    same_answer: float
    bytes: int
    bytes_float32: int

    def __str__(self) -> str:
        by = "by the last exit"
        if self.policy is not None:
            thresholds = ", ".join(f"{threshold:g}" for threshold in self.policy["thresholds"][:-1])
            by = f"under {self.policy['measure']['name']} with thresholds ({thresholds})"
        return (
            f"int8 on {self.data}, {self.images:,} images: {self.accuracy:.2f} % right (float32 "
            f"{self.accuracy_float32:.2f} %) {by}, {self.same_exit:.1%} leave at the same exit, "
            f"{self.same_answer:.1%} with the same class; {self.bytes / 1e6:.2f} MB (float32 "
            f"{self.bytes_float32 / 1e6:.2f} MB)"
        )


def quantized(network: EarlyExitNet, made: Parts, images_SCHW: Tensor) -> Parts:
    """The parts in int8, with scales from what these images make of them.

    Static quantisation (QDQ): weights symmetric in 7 bits for each channel, so that processors without VNNI, whose sums
    of products saturate, give the same answers; activations in 8 bits from their smallest to their largest value.

    Args:
        made: The network's parts in float32; they stay as they are.
        images_SCHW: Like those to come, a few hundred, normalised as in training. Not those that are reported on.

    Raises:
        UsageError: onnxruntime is not installed; no images, or of another shape.
    """
    _runtime()
    if len(images_SCHW) == 0 or tuple(images_SCHW.shape[1:]) != made.image_shape:
        raise UsageError(
            f"Images to calibrate int8 with must be a few hundred [S, {', '.join(map(str, made.image_shape))}], not "
            f"{list(images_SCHW.shape)}."
        )
    carries: list[Carry] = [{"images": chunk.float().numpy()} for chunk in torch.split(images_SCHW.cpu(), CHUNK)]
    stages, exits = [], []
    for stage, head, reads in zip(made.stages, made.exits, network.reads, strict=True):
        stages.append(_in_int8(stage, carries, IN_STAGES))
        run = _Run(stage)
        carries = [run(carry) for carry in carries]  # of one depth at a time: of all they would not fit into memory
        (name,) = head.inputs
        exits.append(_in_int8(head, [{name: carry[stage.outputs[reads]]} for carry in carries], IN_EXITS))
    return dataclasses.replace(made, stages=tuple(stages), exits=tuple(exits))


def compared(network: EarlyExitNet, made: Parts, in_int8: Parts, policy: Policy | None, split: Split) -> Int8:
    """What int8 costs: the network's parts in float32 and `quantized` run on every image of a split, by onnxruntime.

    `onnx_file` and `stages` write it beside the parts in int8. Answers are taken as the policy says, which was found on
    float32's logits; without one the last exit answers. Neither scales nor thresholds may have seen the images.
    """
    used = policy or Policy.to_the_end(network.num_exits)
    targets_S = torch.cat([batch.targets_B for batch in split.plain().batches()])
    columns = []
    for parts in (made, in_int8):
        logits = _chain(network, parts)
        logits_KSC = torch.cat([logits(batch.images_BCHW) for batch in split.plain().batches()], 1)
        chosen = used.choose(logits_KSC, network.num_classes)
        _, labels_KS = used.measure.over(logits_KSC, network.num_classes)
        exits = tuple(_percent(labels_S == targets_S) for labels_S in labels_KS)
        columns.append((chosen, exits, sum(part.model.ByteSize() for part in (*parts.stages, *parts.exits))))
    (before, exits_float32, bytes_float32), (after, exits, size) = columns
    same_exit_S = before.exits_S == after.exits_S
    return Int8(
        data=split.name,
        images=len(targets_S),
        accuracy=_percent(after.labels_S == targets_S),
        accuracy_float32=_percent(before.labels_S == targets_S),
        exits=exits,
        exits_float32=exits_float32,
        policy=None if policy is None else {"measure": asdict(policy.measure), "thresholds": policy.thresholds},
        same_exit=same_exit_S.double().mean().item(),
        same_answer=(same_exit_S & (before.labels_S == after.labels_S)).double().mean().item(),
        bytes=size,
        bytes_float32=bytes_float32,
    )


def uncertified(policy: Policy) -> Policy:
    """The policy without its certificate, which is of float32's answers and says nothing of int8's."""
    others = {name: value for name, value in policy.found.items() if name != CERTIFICATE}
    return dataclasses.replace(policy, found=others)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("int8 needs onnxruntime, which is not installed: pip install 'offramp[onnx]'.") from error
    return onnxruntime


class _Run:
    """A part, run by onnxruntime on arrays."""

    def __init__(self, part: Part) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = part.model.SerializeToString()
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.part = part

    def __call__(self, given: Mapping[str, NDArray[np.float32]]) -> Carry:
        outputs = self.session.run(self.part.outputs, {name: given[name] for name in self.part.inputs})
        return dict(zip(self.part.outputs, outputs, strict=True))


def _chain(network: EarlyExitNet, made: Parts) -> Callable[[Tensor], Tensor]:
    """A function from images to the logits `[K, B, C]` of the parts."""
    stages, exits = (tuple(map(_Run, parts)) for parts in (made.stages, made.exits))

    def logits(images_BCHW: Tensor) -> Tensor:
        carry: Carry = {"images": images_BCHW.numpy()}
        logits_K = []
        for stage, head, reads in zip(stages, exits, network.reads, strict=True):
            carry = stage(carry)
            (name,), (out,) = head.part.inputs, head.part.outputs
            logits_K.append(torch.from_numpy(head({name: carry[stage.part.outputs[reads]]})[out]))
        return torch.stack(logits_K)

    return logits


def _in_int8(part: Part, given: Sequence[Carry], operators: Sequence[str]) -> Part:
    """One part, calibrated with what it is given; unchanged where it has nothing to quantise."""
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    multiplied = {node.op_type for node in part.model.graph.node} & {"Conv", "Gemm", "MatMul"}
    if not multiplied & {*operators}:
        return part

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.left: Iterator[Carry] = iter(given)

        def get_next(self) -> Carry | None:
            carry = next(self.left, None)
            return None if carry is None else {name: carry[name] for name in part.inputs}

    with tempfile.TemporaryDirectory() as folder, quiet():
        source, file = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(part.model.SerializeToString())  # given the model itself, it would empty its tensors
        quantization.quantize_static(
            source,
            file,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return dataclasses.replace(part, model=_tidied(file, part))


def _tidied(file: Path, part: Part) -> "onnx.ModelProto":
    """What onnxruntime wrote, with the header of the part that it was made of, and all shapes known."""
    import onnx

    model = onnx.load(file)
    model.ir_version, model.producer_name = part.model.ir_version, part.model.producer_name
    model.producer_version = part.model.producer_version
    del model.opset_import[:]
    model.opset_import.extend(part.model.opset_import)
    del model.graph.value_info[:]
    return checked(model)


def _percent(right_S: Tensor) -> float:
    return 100 * right_S.double().mean().item()
