"""What stands before and behind the clock of `benchmarks/training_step.py`: the same loss, and operators by kind."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import profiling
import training_step

CPU = torch.device("cpu")


@pytest.mark.parametrize(("form", "loss"), [(("compiled", "float32"), 2.001), (("compiled", "bf16"), 2.1)])
def test_who_has_another_loss_is_not_timed(form, loss) -> None:
    steps = {training_step.PLAIN: lambda: torch.tensor(2.0), form: lambda: torch.tensor(loss)}
    with pytest.raises(SystemExit, match="its loss is off by"):
        training_step.check("a network", steps)


def test_rounding_is_let_through_and_nan_is_not() -> None:
    steps = {training_step.PLAIN: lambda: torch.tensor(2.0), ("compiled", "bf16"): lambda: torch.tensor(2.001)}
    assert training_step.check("a network", steps) == {"plain, float32": 0.0, "compiled, bf16": 0.0005}
    steps["compiled", "bf16"] = lambda: torch.tensor(torch.nan)
    with pytest.raises(SystemExit, match="nan"):
        training_step.check("a network", steps)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("addmm_", "matrix products"),
        ("_addmm_activation", "matrix products"),
        ("mkldnn_convolution", "convolutions, forward"),
        ("convolution_backward", "convolutions, backward"),
        ("native_batch_norm_backward", "batch norm and ReLU"),
        ("copy_", "copies"),
        ("_fused_sgd_", profiling.OTHERS),
    ],
)
def test_operators_have_kinds(operator, kind) -> None:
    assert profiling.kind_of(operator) == kind


def test_shares_add_up_and_what_is_no_operator_is_the_rest() -> None:
    left = torch.randn(300, 300)

    def work() -> None:
        for _ in range(20):
            left @ left
        time.sleep(0.2)

    found = profiling.shares(profiling.profiled(work, CPU), CPU)
    assert sum(found.values()) == pytest.approx(1)
    assert found["matrix products"] > 0
    assert found[profiling.REST] > 0.2
    assert found["convolutions, forward"] == 0
