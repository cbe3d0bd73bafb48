"""Images that a run's folder brings along to try its network on: those of a shipped network, or one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.data.class_folders import READABLE
from offramp.files import CARD
from offramp.json_files import read

_MOST = 24


@dataclass(frozen=True)
class Sample:
    """An image file, and its class, from 0, where that is known."""

    path: Path
    label: int | None


def samples(run: Path, class_names: Sequence[str]) -> tuple[Sample, ...]:
    """Images in the folder `images` of a run, at most 24, by class and name.

    A class is known of what a shipped network's card lists, and of files in a folder named like a class.
    """
    listed = read(run / CARD, dict[str, Any]).get("images", {}) if (run / CARD).is_file() else {}
    images = []
    for path in sorted((run / "images").glob("**/*")):
        if path.is_file() and path.suffix.lower() in READABLE:
            name = path.parent.name
            label = listed.get(path.name, {}).get("class")
            images.append(Sample(path, class_names.index(name) if label is None and name in class_names else label))
    return tuple(sorted(images, key=lambda sample: -1 if sample.label is None else sample.label)[:_MOST])
