"""Trainings that numbers run away in, and what a run's folder must hold after each: finite numbers, or none.

`CASES` are arguments of `offramp train`, without `--out`; `broken(folder)` lists what is not finite in a folder;
`failure(arguments, folder)` says what went wrong with a training, or nothing.
"""

import contextlib
import io
import json
import re
from pathlib import Path

from offramp.cli import main
from offramp.storage import load_tensors

TINY = "msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8".split()
_SHORT = ["--data", "digits", "limit=100", "holdout=20", "--batch-size", "20", "--network", *TINY, "--device", "cpu"]
_RATES = ("1e2", "1e4", "1e8", "1e16", "1e30", "1e38", "3e38", "1e39", "1e300")
WAYS = {
    "sgd": ["--epochs", "2", "--save-every-steps", "1"],
    "one step": ["--epochs", "1", "--batch-size", "80"],
    "warm-up": ["--epochs", "2", "--warmup-epochs", "1"],
    "adamw": ["--epochs", "2", "--optimizer", "adamw", "--save-every-steps", "1"],
    "bf16": ["--epochs", "1", "--precision", "bf16"],
    "power-sqrt": ["--epochs", "2", "--objective", "power-sqrt", "--keep-best"],
    "wpn": ["--epochs", "2", "--rule", "wpn", "--save-every-steps", "1"],
    "meta-gf": ["--epochs", "3", "--rule", "meta-gf", "--save-every-steps", "1"],
    "decay": ["--epochs", "1", "--weight-decay", "1e30"],
}
CASES: dict[str, list[str]] = {
    f"{way}, rate {rate}": ["train", *_SHORT, *arguments, "--lr", rate]
    for way, arguments in WAYS.items()
    for rate in _RATES
}
FEW = {
    "sgd, rate 1e4": 1,
    "one step, rate 1e2": 0,
    "one step, rate 1e38": 1,
    "one step, rate 1e39": 2,
    "wpn, rate 1e8": 1,
}
"""A few of them, with the exit status."""


def failure(arguments: list[str], folder: Path) -> str:
    """What went wrong; empty where all is finite, or was refused, or ended in one line that is true of the folder."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        status = main([*arguments, "--out", str(folder)])
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("offramp: ")]
    if len(lines) != (status != 0) or status not in (0, 1, 2):
        return f"status {status}, said {lines}"
    if status == 2:  # refused at the door
        return "refused, and a folder made" if folder.exists() else ""
    if found := broken(folder):
        return f"not finite: {', '.join(found[:5])}"
    if (folder / "weights.safetensors").is_file() != (status == 0):
        return f"status {status}, and weights" if status else "no weights"
    if status == 0:
        return ""
    checkpoints = sorted((folder / "checkpoints").glob("*.safetensors"))
    named = re.search(r"the newest checkpoint is (\S+)\. ", lines[0])
    true = [Path(named[1])] == checkpoints[-1:] if named else "there is no checkpoint yet" in lines[0]
    return "" if true and bool(named) == bool(checkpoints) else f"there are {len(checkpoints)} checkpoints: {lines[0]}"


def broken(folder: Path) -> list[str]:
    """What is not finite in the files of a run: `file: tensor`, or `file: line`. Damaged files raise."""
    found = []
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, _ = load_tensors(path)
        found += [
            f"{path.name}: {name}"
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and not tensor.isfinite().all()
        ]
    for path in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.json")]):
        found += [f"{path.name}: {word}" for word in _bare_words(path.read_text())]
    return found


def _bare_words(text: str) -> list[str]:
    """NaN and Infinity, which are no JSON."""
    found: list[str] = []
    for line in text.splitlines() if not text.startswith(("{\n", "[\n")) else [text]:
        json.loads(line, parse_constant=found.append)
    return found
