"""A finished run's network for another runtime, with what the run knows of it: policy, input, the cost of int8."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offramp import export as files
from offramp.data import Inputs, Parts
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.reports.loading import check_trained_on, given_policy, inputs_of, made_by_hand, parts_of
from offramp.reports.sample import pool
from offramp.runs import RunFolder, load

CALIBRATED_ON = 256  # images, with int8


@dataclass(frozen=True)
class Exported:
    """What was written: a file or a folder, and what int8 costs where it was asked for."""

    written: Path
    int8: files.Int8 | None


def export(
    run: str | Path,
    *,
    to: Literal["onnx", "torch"],
    policy: str | Path | None = None,
    preprocess: bool = False,
    stages: bool = False,
    int8: bool = False,
    compiled: bool = False,
    out: str | Path | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a finished run's network for another runtime: see `offramp.export`.

    Args:
        run: The run's folder.
        to: `onnx`: one file that skips by itself. `torch`: a package for each stage and exit.
        policy: A policy's file. Default: `policy.json` in the run's folder.
        preprocess: The one ONNX file takes pixels.
        stages: Write an ONNX file for each stage and exit.
        int8: Write ONNX in 8 bits, calibrated on held-out images and measured on the test set.
        compiled: Compile packages ahead of time.
        out: Where to. Default: below `export` in the run's folder.
        root: Folder that holds the data set's files; used only by int8, and for a run that has no `input.json`.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        note: Hears in words what is being done.

    Raises:
        UsageError: No run or an unfinished one; one ONNX file without a policy; a policy for another network; data that
            are needed and cannot be had; what the room `export` refuses.
    """
    folder = RunFolder(run, allow_code)
    network = load(folder.path, allow_code=allow_code)
    found, inputs = _policy(folder, policy, needed=to == "onnx" and not stages), _inputs(folder, root, preprocess)
    suffix = "-int8" if int8 else ""
    shape = network.image_shape or _image_shape(folder, inputs, root)
    made, measured = None, None
    if int8:
        made, measured, found = _in_int8(folder, network, found, shape, root, note)
    about: dict[str, Any] = {"inputs": inputs, "image_shape": shape}
    if to == "torch":
        target = Path(out or folder.export / "torch")
        files.torch_packages(network, target, policy=found, compiled=compiled, **about)
    elif stages:
        target = Path(out or folder.export / f"stages{suffix}")
        files.stages(network, target, policy=found, made=made, int8=measured, **about)
    else:
        assert found is not None
        target = Path(out or folder.export / f"network{suffix}.onnx")
        files.onnx_file(network, found, target, preprocess=preprocess, made=made, int8=measured, **about)
    return Exported(target, measured)


def _policy(folder: RunFolder, given: str | Path | None, needed: bool) -> Policy | None:
    found, _ = given_policy(given, folder)
    if found is None and needed:
        raise UsageError(
            f"{folder.path} has no policy.json, and the file has to know who leaves where: "
            f"`{folder.command('policy')}` or `{folder.command('certify')}` finds thresholds, --policy FILE gives some."
        )
    return found


def _inputs(folder: RunFolder, root: str | None, needed: bool) -> Inputs | None:
    """What the run says of its input; only where it is needed is the data set asked."""
    if needed:
        return inputs_of(folder, folder.read_config(), root)
    return Inputs.load(folder.input) if folder.input.is_file() else None


def _image_shape(folder: RunFolder, inputs: Inputs | None, root: str | None) -> tuple[int, int, int]:
    """Of the images of a run whose network does not say it: from what the run says of its input, or from its data."""
    if inputs is not None:
        return inputs.image_shape
    data = _data(
        folder,
        root,
        "offramp.export.onnx_file(network, policy, path, image_shape=(channels, height, width)), because the network "
        "does not say which images it is for.",
    )
    return data.test.image_shape


def _in_int8(
    folder: RunFolder,
    network: EarlyExitNet,
    policy: Policy | None,
    image_shape: tuple[int, int, int],
    root: str | None,
    note: Callable[[str], None],
) -> tuple[files.Parts, files.Int8, Policy | None]:
    """The parts in int8, what that costs on the test set, and the policy, without what holds for float32 only."""
    data = _data(folder, root, "offramp.export.quantized(network, offramp.export.parts(network), images).")
    calibration = data.val.search if data.val.splits() else data.train
    note(f"Calibrating int8 on {calibration.name}, measuring it on {data.test.name}.")
    made = files.parts(network, image_shape)
    small = files.quantized(network, made, pool(calibration, CALIBRATED_ON).images_SCHW)
    measured = files.compared(network, made, small, policy, data.test)
    bare = None if policy is None else files.uncertified(policy)
    if bare != policy:
        note("The certificate is of float32's answers and does not pass on to int8.")
    return small, measured, bare


def _data(folder: RunFolder, root: str | None, call: str) -> Parts:
    """The data that a run was trained on; `call` is the way from Python for those whose data cannot be had so."""
    config = folder.read_config()
    if config["data"] is None:
        raise made_by_hand(folder, call)
    data = parts_of(folder, config, root, "offramp.export")
    check_trained_on(data, folder, config)
    return data
