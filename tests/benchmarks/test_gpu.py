"""`make bench-gpu` has not run on a GPU here; that its script runs, and what it leaves, is tested on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*options: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here, and it would be measured")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    said = run()
    assert said.startswith("There is no CUDA GPU here")
    assert said.count("\n") == 1


def test_everything_it_measures_is_measured_small_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    said = run("--device", "cpu", "--quick", "--out", str(out))
    found = json.loads(said)
    assert found == json.loads(out.read_text())
    names = [row["name"] for row in found["rows"]]
    steps = [f"small MSDNet, {form}, {p}" for form in ("plain", "merged") for p in ("float32", "bf16")]
    assert names == [*steps, "fit, data path included", "2 seeds side by side / one"]
    assert all({"name", "unit", "goal", "met"} <= row.keys() for row in found["rows"])
    assert all(row["value"] > 0 for row in found["rows"][:-1])
    assert found["rows"][-1]["at_least"] <= found["rows"][-1]["ratio"] <= found["rows"][-1]["at_most"]
    for profiled in found["details"]["a step of the loop, bf16"].values():
        assert profiled["operators asked for"] > 100
