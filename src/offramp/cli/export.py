"""`offramp export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.config import did_you_mean
from offramp.errors import UsageError

if TYPE_CHECKING:
    from offramp import data as data_sets
    from offramp.data import Inputs
    from offramp.export import Int8, Parts
    from offramp.network import EarlyExitNet
    from offramp.policy import Policy

TARGETS = ("onnx", "torch")
CALIBRATED_ON = 256  # images, with --int8


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
    from offramp import export as room
    from offramp.runs import load

    network = load(run)
    found, inputs = _policy(run, policy, needed=to == "onnx" and not stages), _inputs(run, root, needed=preprocess)
    folder, suffix = Path(run).expanduser() / "export", "-int8" if int8 else ""
    shape = network.image_shape or _image_shape(run, inputs, root)
    made, measured = None, None
    if int8:
        made, measured, found = _in_int8(run, network, found, shape, root)
    if to == "torch":
        target = Path(out or folder / "torch")
        room.torch_packages(network, target, policy=found, inputs=inputs, image_shape=shape, compiled=compiled)
    elif stages:
        target = Path(out or folder / f"stages{suffix}")
        room.stages(network, target, policy=found, inputs=inputs, image_shape=shape, made=made, int8=measured)
    else:
        assert found is not None
        target = Path(out or folder / f"network{suffix}.onnx")
        room.onnx_file(
            network, found, target, inputs=inputs, preprocess=preprocess, image_shape=shape, made=made, int8=measured
        )
    if measured is not None:
        print(measured)
    print(target)


def _check(to: str, preprocess: bool, stages: bool, int8: bool, compiled: bool) -> None:
    """Refuse options that do not go together."""
    if to not in TARGETS:
        raise UsageError(f"Unknown target {to!r}.{did_you_mean(to, TARGETS)}")
    if compiled and to != "torch":
        raise UsageError("--compiled is for --to torch; onnxruntime compiles by itself.")
    if stages and to != "onnx":
        raise UsageError("--stages is for --to onnx; --to torch always writes stages.")
    if preprocess and (to != "onnx" or stages):
        raise UsageError("--preprocess is for the one ONNX file; stages.json says how pixels become the input.")
    if int8 and to != "onnx":
        raise UsageError("--int8 is for --to onnx.")


def _in_int8(
    run: str, network: "EarlyExitNet", policy: "Policy | None", image_shape: tuple[int, int, int], root: str | None
) -> "tuple[Parts, Int8, Policy | None]":
    """The parts in int8, what that costs on the test set, and the policy, without what holds for float32 only."""
    from offramp import export as room
    from offramp.reports.bench_timing import pool

    data = _data(run, root, "offramp.export.quantized(network, offramp.export.parts(network), images).")
    calibration = data.val.search if data.val.splits() else data.train
    print(f"Calibrating int8 on {calibration.name}, measuring it on {data.test.name}.", file=sys.stderr)
    made = room.parts(network, image_shape)
    small = room.quantized(network, made, pool(calibration, CALIBRATED_ON).images_SCHW)
    measured = room.compared(network, made, small, policy, data.test)
    bare = None if policy is None else room.uncertified(policy)
    if bare != policy:
        print("The certificate is of float32's answers and does not pass on to int8.", file=sys.stderr)
    return small, measured, bare


def _image_shape(run: str, inputs: "Inputs | None", root: str | None) -> tuple[int, int, int]:
    """Of the images of a run whose network does not say it: from what the run says of its input, or from its data."""
    if inputs is not None:
        return inputs.image_shape
    data = _data(
        run,
        root,
        "offramp.export.onnx_file(network, policy, path, image_shape=(channels, height, width)), because the network "
        "does not say which images it is for.",
    )
    return data.test.image_shape


def _data(run: str, root: str | None, way_out: str) -> "data_sets.Parts":
    """The data that a run was trained on; `way_out` for those whose data cannot be had so."""
    from offramp.reports.evaluate import check_trained_on, parts_of
    from offramp.runs import RunFolder

    folder = RunFolder(run)
    config = folder.read_config()
    if config["data"] is None:
        raise UsageError(
            f"{run} was trained on data made by hand, which its folder cannot bring back. From Python: {way_out}"
        )
    data = parts_of(folder, config, root, "offramp.export")
    check_trained_on(data, folder, config)
    return data


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
