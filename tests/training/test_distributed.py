"""Whole runs of two processes under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from offramp.files import RunFolder
from offramp.storage import load_tensors

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


def torchrun(folder: Path, out: str, *options: str, **environment: str) -> str:
    (folder / "killer.py").write_text(KILLER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["-m", "offramp", "train", "--data", "digits", "--objective", "killer:Killer", "--epochs", "3"]
    command += ["--network", *NETWORK, "--save-every-steps", "4", "--xray", "30", "--out", out, *options]
    variables = os.environ | {"PYTHONPATH": str(folder)} | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_killed_worker_is_restarted_to_the_same_result(tmp_path: Path) -> None:
    torchrun(tmp_path, "calm")
    torchrun(tmp_path, "killed", KILL="1")
    starts = json.loads(RunFolder(tmp_path / "killed").environment.read_text())
    assert [start["processes"] for start in starts] == [2, 2]
    for name in ("weights.safetensors", "metrics.jsonl", "xray.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert RunFolder(tmp_path / "calm").read_metrics()[-1].search_top1[0] > 80


@pytest.mark.slow
def test_two_processes_with_compiled_steps_learn_what_plain_ones_do_and_go_on_after_a_kill(tmp_path: Path) -> None:
    options = ("--epochs", "1", "--batch-size", "300")  # five steps: each makes more of what rounding differs in
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    torchrun(tmp_path, "plain", "--form", "plain", *options)
    log = torchrun(tmp_path, "calm", "--form", "compiled", *options, **cache)
    assert "Compiling the training step" in log
    torchrun(tmp_path, "killed", "--form", "compiled", *options, KILL="1", **cache)
    plain, calm, killed = (load_tensors(RunFolder(tmp_path / name).weights)[0] for name in ("plain", "calm", "killed"))
    torch.testing.assert_close(calm, plain, rtol=0, atol=3e-3)  # in one process they differ by up to 2e-3
    assert all(torch.equal(calm[name], killed[name]) for name in calm)


@pytest.mark.slow
def test_several_processes_leave_a_frozen_trunk_as_it_is_and_share_its_features(tmp_path: Path, script) -> None:
    path = Path(__file__).with_name("frozen_run.py")
    before = script(path).network().stages.state_dict()
    found = {}
    for processes, keep in ((1, "no"), (2, "no"), (2, "yes")):
        out = tmp_path / f"{processes}-{keep}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [str(path), str(out), keep]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert ("is computed once and kept" in done.stderr) == (keep == "yes")
        tensors, _ = load_tensors(RunFolder(out).weights)
        assert all(torch.equal(tensors[f"stages.{name}"], value) for name, value in before.items())
        found[processes, keep] = tensors
    torch.testing.assert_close(found[2, "no"], found[1, "no"])
    torch.testing.assert_close(found[2, "yes"], found[1, "no"])


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "offramp", "train", "--data", "digits", "--epochs", "6", "--batch-size", "32"]
    command += ["--network", *NETWORK, "--save-every-minutes", "60", "--keep-checkpoints", "100", "--device", "cpu"]

    def start(out: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "--out", str(tmp_path / out)], stderr=subprocess.PIPE, text=True)

    calm = start("calm")
    _, said = calm.communicate(timeout=500)
    assert calm.returncode == 0, said
    stopped, folder = start("stopped"), RunFolder(tmp_path / "stopped")
    until = time.monotonic() + 300
    while not folder.metrics.is_file() and time.monotonic() < until:  # an epoch is over
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode != 0
    assert "Stopped by SIGTERM; saved after" in said
    assert not folder.weights.exists()
    assert len(list(folder.checkpoints.glob("step-*.safetensors"))) >= 1
    again = start("stopped")
    _, said = again.communicate(timeout=500)
    assert again.returncode == 0, said
    assert "Continuing after" in said
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
