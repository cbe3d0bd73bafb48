"""The files that a command writes into the folder of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.storage import write_atomically


def write_result(values: dict[str, Any], path: Path, more: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Write a result's JSON values to `path`, and what was drawn of it; gives all files."""
    files = {path: (json.dumps(values, indent=1) + "\n").encode(), **more}
    for file, content in files.items():
        write_atomically(file, content)
    return tuple(files)
