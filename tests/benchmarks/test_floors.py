"""Floors are arithmetic: what is counted is compared with what can be counted by hand."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import floors
from gpu import SMALL

CASE = SMALL["small MSDNet"]


def test_operators_and_bytes_are_those_of_the_hand() -> None:
    x, y = torch.randn(2, 10, 8)
    with floors.Counted() as seen:
        z = x + y  # reads two, writes one
        z.view(4, 20)[1:].t()  # moves nothing
        z.mul_(2)  # reads and writes one
    assert seen.operators == 2
    assert seen.bytes == (3 + 2) * 80 * 4


def test_floors_of_a_small_network_follow_from_what_was_counted() -> None:
    found = floors.floors(CASE._replace(batch=6), "float32")
    whole = floors.counted(CASE, "float32", 6)
    assert found["operators"] == whole.operators
    assert found["gigabytes"] == pytest.approx(whole.bytes / 1e9, abs=0.006)  # the straight line from 2 and 4 images
    assert found["milliseconds"]["launches one by one"] == pytest.approx(
        1000 * whole.operators * floors.LAUNCH, abs=0.006
    )
