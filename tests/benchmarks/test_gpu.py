"""`make bench-gpu` has not run on a GPU here; that its script runs, and what it leaves, is tested on the CPU."""

import contextlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu

SCRIPT = Path(gpu.__file__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here, and it would be measured")
def test_without_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("There is no CUDA GPU here")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_everything_it_measures_is_measured_small_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--quick", "--out", str(out)]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    found = json.loads(said)
    assert found == json.loads(out.read_text())
    names = [row["name"] for row in found["rows"]]
    steps = [f"small MSDNet, {form}, {p}" for form in ("plain", "traced") for p in ("float32", "bf16")]
    assert names == [*steps, "fit, data path included", "2 seeds side by side / one"]
    assert all({"name", "unit", "goal", "met"} <= row.keys() for row in found["rows"])
    assert all(row["value"] > 0 for row in found["rows"][:-1])
    assert found["rows"][-1]["at_least"] <= found["rows"][-1]["ratio"] <= found["rows"][-1]["at_most"]
    for profiled in found["details"]["a step of the loop, bf16"].values():
        assert profiled["operators asked for"] > 100


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Measures the steps of forms that take a second each, but for those whose error is given; what was written."""

    def go(errors: Mapping[str, BaseException], *options: str) -> dict[str, Any]:
        def step_of(case: gpu.Case, form: str, *others: Any) -> Callable[[], float]:
            def step() -> float:
                if form in errors:
                    raise errors[form]
                return 1.0

            return step

        monkeypatch.setattr(gpu, "step_of", step_of)
        out = tmp_path / "gpu.json"
        words = ["--device", "cpu", "--quick", "--skip", "seeds", "profile", "--out", str(out), *options]
        with contextlib.suppress(KeyboardInterrupt):
            gpu.measure(gpu.parser().parse_args(words))
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    return go


@pytest.mark.slow
def test_a_form_that_fails_when_it_is_timed_has_a_row_and_the_others_go_on(measure) -> None:
    found = measure({"plain": RuntimeError("CUDA out of memory.\nTried to allocate")})["rows"]
    assert [row.get("why") for row in found] == ["CUDA out of memory."] * 4  # the others are compared with plain
    found = measure({"traced": RuntimeError("CUDA out of memory.\nTried to allocate")})["rows"]
    assert [(row["value"], row.get("why")) for row in found] == [(8.0, None)] * 2 + [(None, "CUDA out of memory.")] * 2


def test_what_was_measured_before_a_run_is_stopped_is_there(measure) -> None:
    found = measure({"traced": KeyboardInterrupt()})
    assert [row["name"] for row in found["rows"]] == ["small MSDNet, plain, float32", "small MSDNet, plain, bf16"]
    assert len(found["details"]) == 2


@pytest.mark.slow
def test_forms_can_be_chosen(measure) -> None:
    assert [row["name"] for row in measure({}, "--forms", "traced")["rows"]] == [
        "small MSDNet, traced, float32",
        "small MSDNet, traced, bf16",
    ]
