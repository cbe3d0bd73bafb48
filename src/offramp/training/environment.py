"""Where a run runs: versions, device, threads, the git state of the folder it was started from, the command."""

import datetime
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import numpy
import torch

import offramp
from offramp import processes
from offramp.devices import describe_device, processor_name


def describe(device: torch.device) -> dict[str, Any]:
    """What `environment.json` says of one start."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "offramp": offramp.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": describe_device(device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the folder we were started from, and whether it has changes; None where it is no repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one too slow to ask: nothing to record
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
