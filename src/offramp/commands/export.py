"""`offramp export`: the network of a finished run for another runtime, with what the run knows of it."""

from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from offramp.checks import check_name
from offramp.commands.options import Computes, File, Flag, OnRun, in_threads
from offramp.config import unset
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.show.terminal import IN_TERMINAL
from offramp.show.watch import QUIET, Watch
from offramp.terminal import escaped

if TYPE_CHECKING:
    from offramp import export as files
    from offramp.data import Inputs, Parts, PartsGiven
    from offramp.export import Int8
    from offramp.network import EarlyExitNet
    from offramp.policy import Policy

Target = Literal["onnx", "torch"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OnRun, Computes):
    """Write a finished run's network as ONNX or torch.export packages.

    With its policy.

    The ONNX file skips by itself: stages that no image of a batch needs are not run. Its metadata say how to call it.
    """

    to: Annotated[str, tyro.conf.arg(metavar="{onnx,torch}")]
    """onnx: one file for onnxruntime, or with --stages one for each stage and exit.
    torch: a package of torch.export for each stage and exit."""
    policy: File = None
    """Thresholds, as offramp policy and offramp certify write them. Default: RUN/policy.json."""
    preprocess: Flag = False
    """The ONNX file takes pixels (uint8 [B, height, width, 3], any size) and resizes and normalises them."""
    stages: Flag = False
    """Write a file for each stage and each exit, with stages.json, for servers that queue images by depth."""
    int8: Flag = False
    """Write weights and maps in 8 bits, calibrated on held-out images, and measure what that costs on the test set:
    accuracy, who leaves where, bytes. A certificate does not pass on."""
    compiled: Flag = False
    """Compile packages ahead of time for this processor; needs a C++ compiler."""
    out: Annotated[str | Path | None, unset("PATH")] = None
    """Where to. Default: RUN/export/network.onnx, RUN/export/stages or RUN/export/torch;
    with --int8 network-int8.onnx or stages-int8."""
    root: Annotated[str | None, unset("DIR")] = None
    """Folder that holds the data set's files; asked for only by --int8, and by runs that have no input.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("to", self.to, get_args(Target))
        if self.compiled and self.to != "torch":
            raise UsageError("--compiled is for --to torch; onnxruntime compiles by itself.")
        if self.stages and self.to != "onnx":
            raise UsageError("--stages is for --to onnx; --to torch always writes stages.")
        if self.preprocess and (self.to != "onnx" or self.stages):
            raise UsageError("--preprocess is for the one ONNX file; stages.json says how pixels become the input.")
        if self.int8 and self.to != "onnx":
            raise UsageError("--int8 is for --to onnx.")

    def main(self) -> None:
        exported = export(self, watch=IN_TERMINAL)
        if self.json:
            int8 = None if exported.int8 is None else asdict(exported.int8)
            print(dumps({"written": str(exported.written), "int8": int8}))
            return
        if exported.int8 is not None:
            print(escaped(exported.int8))
        print(escaped(exported.written))


@dataclass(frozen=True)
class Exported:
    """What was written: a file or a folder, and what int8 costs where it was asked for."""

    written: Path
    int8: "Int8 | None"


@in_threads
def export(options: ExportOptions, *, parts: "PartsGiven | None" = None, watch: Watch = QUIET) -> Exported:
    """Write a finished run's network for another runtime: `offramp.export` refuses what cannot be written."""
    from offramp import data
    from offramp import export as files
    from offramp.commands.open_run import inputs_of, parts_of
    from offramp.commands.policy_files import given_policy
    from offramp.files import load

    folder = RunFolder(options.run, options.allow_code)
    config = folder.read_config()
    network = load(folder.path, allow_code=options.allow_code)
    policy, _ = given_policy(options.policy, folder)
    if policy is None and options.to == "onnx" and not options.stages:
        raise UsageError(
            f"{folder.path} has no policy.json, and the file has to know who leaves where: "
            f"`{folder.command('policy')}` or `{folder.command('certify')}` finds thresholds, --policy FILE gives some."
        )
    if options.preprocess:
        inputs: Inputs | None = inputs_of(folder, config, options.root)
    else:
        inputs = data.Inputs.load(folder.input) if folder.input.is_file() else None
    shape = network.image_shape or (None if inputs is None else inputs.image_shape)
    known = None if parts is None else data.as_parts(parts, network.num_classes)
    if shape is None or options.int8:
        known = parts_of(folder, config, options.root, known)
        shape = shape or known.test.image_shape
    made, measured, suffix = None, None, ""
    if options.int8:
        assert known is not None
        made, measured = _in_int8(network, policy, shape, known, watch)
        suffix, certified = "-int8", policy
        policy = None if certified is None else files.uncertified(certified)
        if policy != certified:
            watch.note("The certificate is of float32's answers and does not pass on to int8.")
    about: dict[str, Any] = {"inputs": inputs, "image_shape": shape}
    if options.to == "torch":
        target = Path(options.out or folder.export / "torch")
        files.torch_packages(network, target, policy=policy, compiled=options.compiled, **about)
    elif options.stages:
        target = Path(options.out or folder.export / f"stages{suffix}")
        files.stages(network, target, policy=policy, made=made, int8=measured, **about)
    else:
        assert policy is not None
        target = Path(options.out or folder.export / f"network{suffix}.onnx")
        files.onnx_file(network, policy, target, preprocess=options.preprocess, made=made, int8=measured, **about)
    return Exported(target, measured)


def _in_int8(
    network: "EarlyExitNet", policy: "Policy | None", shape: tuple[int, int, int], data: "Parts", watch: Watch
) -> "tuple[files.Parts, Int8]":
    """The network's parts in 8 bits, and what that costs on the test set."""
    from offramp import export as files
    from offramp.commands.sample import CALIBRATED_ON, pool

    calibration = data.val.search if data.val.splits() else data.train
    watch.note(f"Calibrating int8 on {calibration.name}, measuring it on {data.test.name}.")
    whole = files.parts(network, shape)
    small = files.quantized(network, whole, pool(calibration, CALIBRATED_ON).images_SCHW)
    return small, files.compared(network, whole, small, policy, data.test)
