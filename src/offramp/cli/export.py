"""`offramp export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.config import did_you_mean
from offramp.errors import UsageError

if TYPE_CHECKING:
    from offramp.data import Inputs
    from offramp.policy import Policy

TARGETS = ("onnx", "torch")


def export(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    to: Annotated[str, tyro.conf.arg(metavar="{onnx,torch}")],
    policy: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    preprocess: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    stages: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
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
        compiled: Compile packages ahead of time for this processor; needs a C++ compiler.
        out: Where to. Default: RUN/export/network.onnx, RUN/export/stages or RUN/export/torch.
        root: Folder that holds the data set's files; asked for only by runs that have no input.json.
    """
    if to not in TARGETS:
        raise UsageError(f"Unknown target {to!r}.{did_you_mean(to, TARGETS)}")
    if compiled and to != "torch":
        raise UsageError("--compiled is for --to torch; onnxruntime compiles by itself.")
    if stages and to != "onnx":
        raise UsageError("--stages is for --to onnx; --to torch always writes stages.")
    if preprocess and (to != "onnx" or stages):
        raise UsageError("--preprocess is for the one ONNX file; stages.json says how pixels become the input.")
    from offramp import export as room
    from offramp.runs import load

    network = load(run)
    found, inputs = _policy(run, policy, needed=to == "onnx" and not stages), _inputs(run, root, needed=preprocess)
    folder = Path(run).expanduser() / "export"
    if to == "torch":
        target = Path(out or folder / "torch")
        room.torch_packages(network, target, policy=found, inputs=inputs, compiled=compiled)
    elif stages:
        target = Path(out or folder / "stages")
        room.stages(network, target, policy=found, inputs=inputs)
    else:
        assert found is not None
        target = Path(out or folder / "network.onnx")
        room.onnx_file(network, found, target, inputs=inputs, preprocess=preprocess)
    print(target)


def _policy(run: str, given: str | None, needed: bool) -> "Policy | None":
    from offramp.reports.policy import given_policy
    from offramp.runs import RunFolder

    found, _ = given_policy(given, RunFolder(run))
    if found is None and needed:
        raise UsageError(
            f"{run} has no policy.json, and the file has to know who leaves where: `offramp policy {run}` or `offramp "
            f"certify {run}` finds thresholds, --policy FILE gives some."
        )
    return found


def _inputs(run: str, root: str | None, needed: bool) -> "Inputs | None":
    """What the run says of its input; only where it is needed is the data set asked."""
    from offramp.data import Inputs
    from offramp.reports.predict import inputs_of
    from offramp.runs import RunFolder

    folder = RunFolder(run)
    if needed:
        return inputs_of(folder, folder.read_config(), root)
    return Inputs.load(folder.input) if folder.input.is_file() else None
