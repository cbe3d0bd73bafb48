"""What a command needs of a finished run before it begins: network, data, policy, records of held-out images.

Everything is checked against what the run was trained on.
"""

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from offramp import data
from offramp.config import DataConfig, Spec
from offramp.data import Inputs, Parts
from offramp.devices import device_named
from offramp.errors import UsageError
from offramp.evaluation import Certificate, Record, recorded
from offramp.evaluation.record import Forward
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.runs import SPLIT, RunFolder, load, read_json
from offramp.runtime.backends import make_program
from offramp.runtime.program import Form

FLOAT32 = Form()  # the network as it is trained
Progress = Callable[[str, int, int], None]  # called with a part's name, images done and images in all
Bars = Callable[[], AbstractContextManager[Progress | None]]  # shows progress while it is open


def network_of(folder: RunFolder, into: EarlyExitNet | None, device: str, written: str) -> EarlyExitNet:
    """The network of a finished run on a device; a folder that cannot be written to is refused: what is `written`."""
    network = load(folder.path, into, allow_code=folder.allow_code).to(device_named(device))
    if not os.access(folder.path, os.W_OK):
        raise UsageError(f"{folder.path} is not writable; {written}.")
    return network


def parts_of(folder: RunFolder, config: dict[str, Any], root: str | None, function: str) -> Parts:
    """The data that a run was trained on, built again; `root` as for `evaluate`, `function` to name in an error."""
    if config["data"] is None:
        raise made_by_hand(folder, f"{function}({str(folder.path)!r}, parts=...).")
    source = Spec.from_json(config["data"]["source"])
    values = {**config["data"], "source": source}
    with folder.naming(config):
        return data.load(DataConfig(**(values if root is None else {**values, "root": root})))


def made_by_hand(folder: RunFolder, call: str) -> UsageError:
    """The error of a run whose data nobody but its author has; `call` says what to do from Python."""
    return UsageError(
        f"{folder.path} was trained on data made by hand, which its folder cannot bring back. From Python: {call}"
    )


def check_trained_on(parts: Parts, folder: RunFolder, config: dict[str, Any]) -> None:
    """Refuse data whose training images are not those of the run."""
    if (config.get("images") or {}).get("train", parts.train.fingerprint()) != parts.train.fingerprint():
        raise UsageError(f"The training images found now are not those that {folder.path} was trained on.")


def inputs_of(folder: RunFolder, config: dict[str, Any], root: str | None) -> Inputs:
    """How a file becomes the input of a run's network: what `input.json` says.

    A run from before there was such a file builds its data once, and gets one.
    """
    if folder.input.is_file():
        return Inputs.load(folder.input)
    way_out = f"From Python: offramp.reports.predict({str(folder.path)!r}, ..., inputs=offramp.data.Inputs(...))."
    if config["data"] is None:
        raise UsageError(
            f"{folder.path} does not say how an image file becomes its network's input: it was trained on data made by "
            f"hand, and has no {folder.input.name}. {way_out}"
        )
    parts = parts_of(folder, config, root, "offramp.reports.predict")
    check_trained_on(parts, folder, config)
    inputs = parts.train.inputs()
    if inputs is None:
        raise UsageError(
            f"There is no known way from an image file to the input of {folder.path}: the images of {parts.train.name} "
            f"are not 8-bit pixels, grey or RGB, or their Split does not say `inputs`. {way_out}"
        )
    if os.access(folder.path, os.W_OK):
        inputs.save(folder.input)
    return inputs


def given_policy(policy: Policy | str | Path | None, folder: RunFolder) -> tuple[Policy | None, Path | None]:
    """The policy asked for, or the run's own, and its file if it was read from one; none where there is none."""
    if isinstance(policy, Policy):
        return policy, None
    if policy is None and not folder.policy.is_file():
        return None, None
    file = folder.policy if policy is None else Path(policy).expanduser()
    found = Policy.load(file)
    try:
        Certificate.of(found)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    return found, file


def held_out(
    folder: RunFolder,
    network: EarlyExitNet,
    parts: Parts,
    names: Sequence[str],
    *,
    batch_size: int | None,
    progress: Progress | None,
    form: Form = FLOAT32,
) -> list[Record]:
    """Records of the held-out halves of these names (`search`, `certify`), kept in the run's folder.

    They are of the logits that `form` gives: those of torch in float32 are the network's own. Data that the run was not
    trained on, or whose held-out images are others than they were, is refused.
    """
    config = folder.read_config()
    check_trained_on(parts, folder, config)
    split = read_json(folder.split, SPLIT) if folder.split.is_file() else {}
    before = {"search": (config.get("images") or {}).get("search"), **(split.get("fingerprints") or {})}
    if any(before.get(name) not in (None, getattr(parts.val, name).fingerprint()) for name in {"search", *names}):
        raise UsageError(f"The images held out now are not those that were held out when {folder.path} was trained.")
    own = form == FLOAT32
    forward = None if own else Forward(str(form), make_program(network, form).logits)
    ending = "" if own else f"-{form.backend}-{form.precision}"
    return [
        recorded(
            network,
            getattr(parts.val, name),
            folder.record(name + ending),
            forward=forward,
            batch_size=batch_size,
            progress=named(progress, name),
        )
        for name in names
    ]


def named(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """`progress` for the part of this name."""
    return None if progress is None else functools.partial(progress, name)
