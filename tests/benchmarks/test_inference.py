"""`benchmarks/inference.py`: each way has a choice of chunks, and answers that are not plain's are not timed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import inference


@pytest.mark.parametrize(("size", "best", "found"), [(256, 16, 16), (32, 16, 16), (32, 64, 32), (1, 16, 1)])
def test_each_way_goes_in_its_own_best_chunk(monkeypatch, size, best, found) -> None:
    def turn(call, images, chunk):
        return lambda: abs(chunk - (best if call == "plain" else 8))

    monkeypatch.setattr(inference, "turn", turn)
    chunks = inference.fastest({"plain": "plain", "ours": "ours"}, torch.zeros(size, 1), 3)
    assert chunks == {"plain": found, "ours": min(8, size)}


def test_answers_that_are_not_plains_are_not_timed() -> None:
    errors = {"autocast": [0.1], "float32": [1e-6], "bf16": [0.14], "packed, not planned, bf16": [0.1]}
    inference.check("a network", errors)
    for way, error in (("bf16", 0.16), ("packed, not planned, bf16", 0.16), ("onnxruntime, float32", 2e-4)):
        with pytest.raises(SystemExit, match=way):
            inference.check("a network", {**errors, way: [error]})
