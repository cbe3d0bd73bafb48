"""`kill -9` at any moment, start again: the same files, byte for byte."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no compiler")
TRAIN = (
    "train --data digits --objective dynamic --network msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) "
    "bottleneck_factors=(1,2) head_channels=8 --save-every-steps 3 --batch-size 100 --xray 20"
).split()


def torture(tmp_path: Path, num_kills: int, seed: int, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(tmp_path), str(num_kills), str(seed)]
    done = subprocess.run([*command, *TRAIN, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("--form", "compiled", "--precision", "bf16"), marks=[needs_compiler, pytest.mark.slow])],
    ids=["auto", "compiled"],
)
def test_three_kills(tmp_path: Path, more: tuple[str, ...]) -> None:
    if "compiled" in more:  # kills are timed by a run that finds what torch compiled once on this machine
        torture(tmp_path / "first", 0, 1, "--epochs", "4", *more)
    result = torture(tmp_path, 3, 1, "--epochs", "4", *more)
    assert result["kills"] == 3
    assert len(result["compared"]) == 5
    assert result["different"] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_twenty_kills(tmp_path: Path, seed: int) -> None:
    # Long enough that it is not finished before its kills on a machine that is twice as fast after the undisturbed run.
    result = torture(tmp_path, 20, seed, "--epochs", "60", "--keep-best")
    assert result["kills"] == 20
    assert len(result["kinds"]) >= 4
    assert "best.safetensors" in result["compared"]
    assert result["different"] == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--freeze-trunk", "--no-augment"), ("--trunk-lr", "0.1")])
def test_kills_with_features_kept_and_with_two_rates(tmp_path: Path, more: tuple[str, ...]) -> None:
    result = torture(tmp_path, 6, 4, "--epochs", "12", *more)
    assert result["kills"] == 6
    assert result["different"] == []
    assert not list((tmp_path / "tortured").glob(".*.part"))
