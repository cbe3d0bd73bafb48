"""The files that commands write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.storage import write_atomically


def write_result(values: dict[str, Any], path: Path, more: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Write a result's JSON values to `path`, and what was drawn of it; gives all files."""
    return write_files({path: (json.dumps(values, indent=1) + "\n").encode(), **more})


def write_files(files: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Write each; gives their paths."""
    for path, content in files.items():
        write_atomically(path, content)
    return tuple(files)
