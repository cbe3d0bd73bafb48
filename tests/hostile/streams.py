"""Commands whose standard streams are closed, full or read by nobody.

`STREAMS` by name: what stands behind standard output or standard error. `COMMANDS`: every command, on a copy of a
network that ships with offramp; `QUICK` names those that take seconds. `failure(...)` says what went wrong, or nothing.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from offramp import backbones, shipped
from offramp.backbones.originals import original_names
from offramp.cli import main
from offramp.config import Spec

NETWORK = "exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8"
PRESET = ["msdnet", "exits=2", "channels=4", "growth=2", "head_channels=8", "num_classes=3"]
TRAIN = f"train --data digits limit=300 --network msdnet {NETWORK} --epochs 1 --threads 1".split()
STREAMS = {  # what a shell takes, and whether standard output is what cannot be written
    "no output": (">&-", True),
    "full output": (">/dev/full", True),
    "output that nobody reads": ("", True),
    "no error": ("2>&-", False),
    "full error": ("2>/dev/full", False),
    "error that nobody reads": ("", False),
    "no input": ("<&-", None),
    "no stream at all": ("<&- >&- 2>&-", True),
}
COMMANDS: dict[str, list[str]] = {
    "help": ["--help"],
    "help of a command": ["predict", "--help"],
    "version": ["--version"],
    "cost": ["cost", "msdnet7-cifar100"],
    "cost, JSON": ["cost", "RUN", "--json"],
    "example": ["example", "--list"],
    "predict, table": ["predict", "RUN", "RUN/images"],
    "predict, CSV": ["predict", "RUN", "RUN/images", "--format", "csv"],
    "predict, JSON lines": ["predict", "RUN", "RUN/images", "--format", "jsonl"],
    "train": [*TRAIN, "--out", "NEW"],
    "layers": ["layers", "torchvision/resnet18"],
    "audit": ["audit", "--trials", "10", "--images", "100", "--candidates", "21"],
    "evaluate": ["evaluate", "RUN", "--json"],
    "evaluate, table": ["evaluate", "RUN"],
    "compare": ["compare", "RUN"],
    "policy": ["policy", "RUN", "--max-drop", "20"],
    "certify": ["certify", "RUN", "--risk", "0.3"],
    "bench": ["bench", "RUN", "--rounds", "5", "--limit", "8", "--batches", "1", "--backend", "torch"],
    "export": ["export", "RUN", "--to", "onnx", "--stages"],
    "verdict": "verdict RUN --no-train --rounds 5 --seconds 1 --images 8 --backend torch".split(),
    "xray": ["xray", "WATCHED"],
    "import": ["import", "FOREIGN", "--preset", *PRESET, "--out", "NEW"],
    "reproduce": ["reproduce", "table1", "--scale", "pocket", "--dry-run", "--rate", "1e9"],
}
QUICK = ["help", "version", "cost", "example", "predict, CSV", "predict, table", "train"]
SILENT = ["train"]  # on standard output


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: bytes
    err: bytes


def prepare(folder: Path) -> None:
    """What most commands read: a copy of a run."""
    shipped.copy("digits", folder / "RUN")


def prepare_rest(folder: Path) -> None:
    """What some commands read: a run that watched gradients, a checkpoint of the original program."""
    if (folder / "FOREIGN").exists():
        return
    assert main([*TRAIN, "--xray", "20", "--out", str(folder / "WATCHED")]) == 0
    network = backbones.build(Spec.parse(PRESET), damping=False)
    names = original_names(network)
    tensors = {names[here]: tensor for here, tensor in network.state_dict().items()}
    torch.save({"state_dict": tensors}, folder / "FOREIGN")


def run(command: list[str], stream: str | None, folder: Path, program: Sequence[str] = ("-m", "offramp")) -> Ended:
    """A command in `folder` with a stream of these, or with all as they should be; `program`: what Python runs."""
    words, output = ("", None) if stream is None else STREAMS[stream]
    arguments = ["bash", "-c", f'exec "$0" "$@" {words}', sys.executable, *program, *command]
    nobody, written = os.pipe()
    os.close(nobody)
    gone = stream is not None and "nobody reads" in stream
    try:
        done = subprocess.run(
            arguments,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=written if gone and output else subprocess.PIPE,
            stderr=written if gone and not output else subprocess.PIPE,
            env={**os.environ, "COLUMNS": "100"},
            timeout=300,
            check=False,
        )
    finally:
        os.close(written)
    return Ended(done.returncode, done.stdout or b"", done.stderr or b"")


def failure(name: str, stream: str, folder: Path) -> str:
    """What went wrong when a command met a stream; empty where all was as promised."""
    if {"WATCHED", "FOREIGN"} & set(COMMANDS[name]):
        prepare_rest(folder)
    return fault(name, stream, run(COMMANDS[name], stream, folder), folder)


def fault(name: str, stream: str, ended: Ended, folder: Path) -> str:
    """What is wrong with how a command ended."""
    for words in (b"Traceback", b"Exception ignored", b"Error:"):
        if words in ended.err:
            return f"status {ended.status}, {ended.err.decode(errors='replace')[-300:]}"
    of_output = STREAMS[stream][1]
    wanted = 0 if not of_output or name in SILENT else 141 if "nobody reads" in stream else 1
    if ended.status != wanted:
        return f"status {ended.status}, not {wanted}: {ended.err.decode(errors='replace')[-300:]}"
    said = ended.err.count(b"offramp: Standard output cannot be written: ")
    if wanted == 1 and "2>&-" not in STREAMS[stream][0] and said != 1:
        return f"said {said} times that output cannot be written: {ended.err.decode(errors='replace')[-300:]}"
    if not of_output and name not in SILENT and not ended.out:
        return "no output"
    if name == "train" and not any(folder.glob("NEW/weights.safetensors")):
        return "no weights"
    return ""
