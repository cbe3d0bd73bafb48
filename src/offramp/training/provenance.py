"""What a run's weights were trained on before the run: its ancestors' images, and whether `certify` is among them.

An ancestor is the run of `--init`, of a teacher, or of a network to collaborate; then that run's own ancestors. A
certificate rests on images that no weights have seen. That an ancestor trained on some of them is known where both runs
divided the same data set: by its name, its number of training images and how they were divided, every position is.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offramp.config import DataConfig
from offramp.data import REGISTRY, Parts
from offramp.data.base import SETTINGS
from offramp.data.partition import Cut, cut_up
from offramp.errors import UsageError
from offramp.files import Ancestor, Division, Origin, RunConfig, RunFolder
from offramp.json_files import convert

_DIVISION = ("training_images", "limit", "holdout", "split_seed")


def ancestor(through: str, run: Path) -> list[Ancestor]:
    """A finished run as an ancestor, by `init`, `teacher` or `network`, and its own after it. Names, no paths."""
    folder = RunFolder(run)
    config, split = folder.read_config(), folder.read_split()
    name = run.resolve().name
    images = {**config.images, **split.fingerprints}
    itself = Ancestor(through, name, named(config.data), split.division, images)
    return [
        itself,
        *(replace(ancestor, through=f"{ancestor.through} of {name}") for ancestor in ancestors(folder, config)),
    ]


def ancestors(folder: RunFolder, config: RunConfig) -> list[Ancestor]:
    """What `origin.json` says of a run's ancestors; where it says nothing of one, or of foreign weights, `unknown`."""
    origin = convert(folder.read_origin(), Origin, folder.origin)
    listed = {ancestor.through for ancestor in origin.ancestors}
    began = [Ancestor(through, unknown=what) for through, what in _began(config, origin) if through not in listed]
    return [*origin.ancestors, *began]


def _began(config: RunConfig, origin: Origin) -> list[tuple[str, str]]:
    """What a run began with or listened to, and a name for it."""
    began = []
    init = (origin.init and origin.init.file) or config.training.init
    if init:
        began.append(("init", Path(init).name))
    elif origin.model and (origin.weights or origin.library is None):
        began.append(("model", origin.model))  # fetched, or handed over by a program as it was
    teacher = config.rule and config.rule.args.get("teacher")
    if teacher:
        began.append(("teacher", Path(str(teacher)).name))
    if config.network and config.network.name.endswith(".collaboration:collaboration"):
        began.append(("network", "the run it collaborates in"))
    return began


def named(data: DataConfig | None) -> str | None:
    """A name that is the same for the same images, however they are divided; None for data made by hand.

    Of a folder or a user's own function it is a hash: names and arguments may be private.
    """
    if data is None:
        return None
    name = data.source.name
    if name in REGISTRY:
        return name
    free = {*SETTINGS, *_DIVISION, "image_size", "flip", "max_megapixels", "mean", "std"}
    args = {key: value for key, value in data.source.args.items() if key not in free}
    if name.startswith("folder:"):
        name = f"folder:{Path(name.partition(':')[2]).expanduser().resolve()}"
    described = json.dumps([name, args], sort_keys=True, default=str)
    return f"{name.partition(':')[0]}:{hashlib.sha256(described.encode()).hexdigest()}"


def check_ancestors(folder: RunFolder, config: RunConfig, parts: Parts) -> tuple[str, ...]:
    """Refuse to certify with images that an ancestor was trained on; gives those of which it cannot be known."""
    unknown = []
    for ancestor in ancestors(folder, config):
        shared = _shared(ancestor, named(config.data), parts)
        if shared:
            raise UsageError(
                f"{folder.path} began with, or listened to, the run {ancestor.run} ({ancestor.through}), which was "
                f"trained on {shared:,} of the {len(parts.val.certify):,} images of {parts.val.certify.name}: they can "
                "certify nothing.  Hold the same images out in both runs."
            )
        if shared is None:
            unknown.append(f"{ancestor.run or ancestor.unknown} ({ancestor.through})")
    return tuple(dict.fromkeys(unknown))


def _shared(ancestor: Ancestor, data: str | None, parts: Parts) -> int | None:
    """Images of `certify` that an ancestor was trained on; None where that cannot be known."""
    if ancestor.unknown is not None:
        return None
    certify, ours = parts.val.certify, parts.val.division
    if (
        ancestor.images.get("certify") == certify.fingerprint()
        or ancestor.images.get("train") == parts.train.fingerprint()
    ):
        return 0  # it held the same images out, or was trained on the same as this run
    if ancestor.data in REGISTRY and data in REGISTRY and ancestor.data != data:
        return 0  # no two of these have images in common
    if (
        None in (ancestor.data, data)
        or ancestor.data != data
        or ancestor.division is None
        or not ours.keys() >= set(_DIVISION)
    ):
        return None
    if ancestor.division.training_images != ours["training_images"]:
        return None
    return len(
        np.intersect1d(_places(ancestor.division)[0], _places(Division(**{key: ours[key] for key in _DIVISION}))[2])
    )


def _places(division: Division) -> Sequence[np.ndarray[Any, np.dtype[np.int64]]]:
    """Where train, search and certify stand among the official training images."""
    cut = Cut(division.holdout, division.split_seed, division.limit)
    return cut_up(np.arange(division.training_images), cut)
