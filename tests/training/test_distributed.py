"""Whole runs of two processes under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.runs import RunFolder

KILLER = """
import os, signal
from dataclasses import dataclass
from offramp.objectives import CrossEntropy

@dataclass(frozen=True)
class Killer(CrossEntropy):
    def terms(self, logits_KBC, targets_B, *, progress=0.0):
        first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if os.environ.get("KILL") and first_life and os.environ["RANK"] == "1" and progress > 0.6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().terms(logits_KBC, targets_B, progress=progress)
"""
NETWORK = "msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8".split()


def torchrun(folder: Path, out: str, **environment: str) -> None:
    (folder / "killer.py").write_text(KILLER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["-m", "offramp", "train", "--data", "digits", "--objective", "killer:Killer", "--epochs", "3"]
    command += ["--network", *NETWORK, "--save-every-steps", "4", "--xray", "30", "--out", out]
    variables = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_worker_is_restarted_to_the_same_result(tmp_path: Path) -> None:
    torchrun(tmp_path, "calm")
    torchrun(tmp_path, "killed", KILL="1")
    starts = json.loads(RunFolder(tmp_path / "killed").environment.read_text())
    assert [start["processes"] for start in starts] == [2, 2]
    for name in ("weights.safetensors", "metrics.jsonl", "xray.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert RunFolder(tmp_path / "calm").read_metrics()[-1]["search_top1"][0] > 80
