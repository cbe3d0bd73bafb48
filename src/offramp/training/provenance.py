"""What a run's weights were trained on before the run: its ancestors' images, and whether `certify` is among them.

An ancestor is the run of `--init`, of a teacher, or of a network to collaborate; then that run's own ancestors. A
certificate rests on images that no weights have seen. That an ancestor trained on some of them is known where both runs
divided the same data set: by its name, its number of training images and how they were divided, every position is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.data import REGISTRY, Parts
from offramp.data.builder import SETTINGS
from offramp.data.partition import Cut, cut_up
from offramp.errors import OfframpError, UsageError
from offramp.files import ORIGIN, SPLIT, RunFolder, read_json

Values = dict[str, Any]
_DIVISION = ("training_images", "limit", "holdout", "split_seed")


def ancestor(through: str, run: Path) -> list[Values]:
    """A finished run as an ancestor, for `origin.json`, and its own ancestors after it. Names, no paths.

    Args:
        through: What the weights or answers came by: `init`, `teacher` or `network`.
        run: The run's folder.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    split = read_json(folder.split, SPLIT) if folder.split.is_file() else {}
    itself = {
        "through": through,
        "run": run.resolve().name,
        "data": named(config["data"]),
        "division": {key: split[key] for key in _DIVISION} if split.keys() >= set(_DIVISION) else None,
        "images": {**(config.get("images") or {}), **(split.get("fingerprints") or {})},
    }
    return [itself, *({**one, "through": f"{one['through']} of {itself['run']}"} for one in ancestors(folder, config))]


def ancestors(folder: RunFolder, config: Mapping[str, Any]) -> list[Values]:
    """What `origin.json` says of a run's ancestors; where it says nothing of one, or of foreign weights, `unknown`."""
    origin = read_json(folder.origin, ORIGIN) if folder.origin.is_file() else {}
    try:
        known = list(origin.get("ancestors", ()))
        told = {one["through"] for one in known}
        return [*known, *({"through": by, "unknown": what} for by, what in _began(config, origin) if by not in told)]
    except (AttributeError, KeyError, TypeError) as error:
        raise OfframpError(
            f"{folder.origin} is damaged: it does not say what the run began with ({error!r})."
        ) from error


def _began(config: Mapping[str, Any], origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run began with or listened to, and a name for it."""
    found = []
    init = (origin.get("init") or {}).get("file") or (config.get("training") or {}).get("init")
    if init:
        found.append(("init", Path(str(init)).name))
    elif origin.get("model") and (origin.get("weights") or origin.get("library") is None):
        found.append(("model", str(origin["model"])))  # fetched, or handed over by a program as it was
    teacher = ((config.get("rule") or {}).get("args") or {}).get("teacher")
    if teacher:
        found.append(("teacher", Path(str(teacher)).name))
    if str((config.get("network") or {}).get("name")).endswith(".collaboration:collaboration"):
        found.append(("network", "the run it collaborates in"))
    return found


def named(data: Mapping[str, Any] | None) -> str | None:
    """A name that is the same for the same images, however they are divided; None for data made by hand.

    Of a folder or a function of somebody's own it is a hash: what they are called and given may be private.
    """
    if data is None:
        return None
    source = data["source"]
    if source["name"] in REGISTRY:
        return str(source["name"])
    free = {*SETTINGS, *_DIVISION, "image_size", "flip", "max_megapixels"}
    given = {key: value for key, value in (source.get("args") or {}).items() if key not in free}
    name = source["name"]
    if name.startswith("folder:"):
        name = f"folder:{Path(name.partition(':')[2]).expanduser().resolve()}"
    told = json.dumps([name, given], sort_keys=True, default=str)
    return f"{name.partition(':')[0]}:{hashlib.sha256(told.encode()).hexdigest()}"


def check_ancestors(folder: RunFolder, config: Mapping[str, Any], parts: Parts) -> tuple[str, ...]:
    """Refuse to certify with images that an ancestor was trained on.

    Args:
        folder: The run's folder.
        config: Its configuration.
        parts: Its data.

    Returns:
        Ancestors of which it cannot be known whether they were trained on such images, in words.

    Raises:
        UsageError: An ancestor was.
        OfframpError: A damaged file.
    """
    unknown = []
    for one in ancestors(folder, config):
        try:
            shared = _shared(one, named(config["data"]), parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise OfframpError(f"{folder.origin} is damaged: of an ancestor it says {one!r}.") from error
        if shared:
            raise UsageError(
                f"{folder.path} began with, or listened to, the run {one['run']} ({one['through']}), which was trained "
                f"on {shared:,} of the {len(parts.val.certify):,} images of {parts.val.certify.name}: they can certify "
                "nothing. Hold the same images out in both runs."
            )
        if shared is None:
            unknown.append(f"{one.get('run') or one['unknown']} ({one['through']})")
    return tuple(dict.fromkeys(unknown))


def _shared(one: Mapping[str, Any], data: str | None, parts: Parts) -> int | None:
    """Images of `certify` that an ancestor was trained on; None where that cannot be known."""
    if "unknown" in one:
        return None
    images, division, certify = one["images"], one["division"], parts.val.certify
    if images.get("certify") == certify.fingerprint() or images.get("train") == parts.train.fingerprint():
        return 0  # it held the same images out, or was trained on the same as this run
    if one["data"] in REGISTRY and data in REGISTRY and one["data"] != data:
        return 0  # no two of these have images in common
    ours = parts.val.division
    if None in (one["data"], data) or one["data"] != data or not division or not ours.keys() >= set(_DIVISION):
        return None
    if division["training_images"] != ours["training_images"]:
        return None
    return len(np.intersect1d(_places(division)[0], _places(ours)[2]))


def _places(division: Mapping[str, Any]) -> Sequence[np.ndarray[Any, np.dtype[np.int64]]]:
    """Where train, search and certify stand among the official training images."""
    cut = Cut(division["holdout"], division["split_seed"], division["limit"])
    return cut_up(np.arange(division["training_images"]), cut)
