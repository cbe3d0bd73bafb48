import subprocess
import sys

import pytest
import torch

from offramp.cli import COMMANDS
from offramp.commands.before_torch import KEPT, SETTINGS, before_torch
from offramp.runtime.timing import kernels_kept

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch):
    for name in SETTINGS:
        monkeypatch.setenv(name, "1")  # and taken back afterwards
        monkeypatch.delenv(name)


def test_more_kernels_are_kept_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    before_torch()
    assert kernels_kept(CPU) == KEPT > 1024
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    before_torch()
    assert kernels_kept(CPU) == 77


def test_where_torch_is_loaded_it_is_too_late():
    before_torch()
    assert kernels_kept(CPU) == 1024


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["bench", "no-run"], marks=pytest.mark.slow, id="bench"),
        pytest.param(["predict", "no-run", "x.png"], id="predict"),
        pytest.param(["train", "--data", "cifar10", "--root", ".", "--out", "o"], marks=pytest.mark.slow, id="train"),
    ],
)
def test_commands_that_compute_set_it_before_torch_is_loaded(arguments, tmp_path):
    program = (
        "import os, sys\nfrom offramp.cli import main\nassert 'torch' not in sys.modules\n"
        f"main({arguments!r})\n"
        "print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert arguments[0] in COMMANDS
    assert done.stdout.split() == [str(KEPT), "True"]
