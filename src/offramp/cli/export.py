"""`offramp export`."""

from typing import Annotated, Literal, cast, get_args

import tyro

from offramp.checks import did_you_mean
from offramp.errors import UsageError
from offramp.terminal import escaped, say

Target = Literal["onnx", "torch"]


def export(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    to: Annotated[str, tyro.conf.arg(metavar="{onnx,torch}")],
    policy: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    preprocess: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    stages: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    int8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    compiled: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None,
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
) -> None:
    """Write a finished run's network for another runtime, with its policy: ONNX, or packages of torch.export.

    The ONNX file skips by itself: stages that no image of a batch needs are not run. Its metadata say how to call it.

    Args:
        run: Folder of a finished run.
        to: onnx: one file for onnxruntime, or with --stages one for each stage and exit. torch: a package of
            torch.export for each stage and exit.
        policy: Thresholds, as offramp policy and offramp certify write them. Default: RUN/policy.json.
        preprocess: The ONNX file takes pixels (uint8 [B, height, width, 3], any size) and resizes and normalises them.
        stages: Write a file for each stage and each exit, with stages.json, for servers that queue images by depth.
        int8: Write weights and maps in 8 bits, calibrated on held-out images, and measure what that costs on the test
            set: accuracy, who leaves where, bytes. A certificate does not pass on.
        compiled: Compile packages ahead of time for this processor; needs a C++ compiler.
        out: Where to. Default: RUN/export/network.onnx, RUN/export/stages or RUN/export/torch; with --int8
            network-int8.onnx or stages-int8.
        root: Folder that holds the data set's files; asked for only by --int8, and by runs that have no input.json.
    """
    _check(to, preprocess, stages, int8, compiled)
    from offramp.reports.export import export as write

    exported = write(
        run,
        to=cast(Target, to),
        policy=policy,
        preprocess=preprocess,
        stages=stages,
        int8=int8,
        compiled=compiled,
        out=out,
        root=root,
        note=say,
    )
    if exported.int8 is not None:
        print(escaped(exported.int8))
    print(escaped(exported.written))


def _check(to: str, preprocess: bool, stages: bool, int8: bool, compiled: bool) -> None:
    """Refuse options that do not go together."""
    if to not in get_args(Target):
        raise UsageError(f"Unknown target {to!r}.{did_you_mean(to, get_args(Target))}")
    if compiled and to != "torch":
        raise UsageError("--compiled is for --to torch; onnxruntime compiles by itself.")
    if stages and to != "onnx":
        raise UsageError("--stages is for --to onnx; --to torch always writes stages.")
    if preprocess and (to != "onnx" or stages):
        raise UsageError("--preprocess is for the one ONNX file; stages.json says how pixels become the input.")
    if int8 and to != "onnx":
        raise UsageError("--int8 is for --to onnx.")
