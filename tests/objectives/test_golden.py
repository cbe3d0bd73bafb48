"""Twenty training losses per objective on a small fixed problem: a refactor leaves `golden.json` as it is.

`python tests/objectives/test_golden.py` writes the file anew; a commit that changes it says why.
"""

import json
from pathlib import Path

import pytest
import torch

from offramp.config import Spec
from offramp.objectives import OBJECTIVES, build

GOLDEN = Path(__file__).with_name("golden.json")
SPECS = {
    str(spec): spec
    for spec in (
        *(Spec(name) for name in OBJECTIVES),
        Spec("discard-threshold", {"threshold": 0.5}),
        Spec("damping", {"strength": [0.3, 0.1, 0.05]}),
        Spec("power-sqrt", {"strength": 0.3}),
        Spec("power-sqrt", {"strength": 0.3, "root": "batch"}),
        Spec("dynamic", {"strength": 0.3, "normalisation": "tanh", "over": "batch", "applied_to": "root"}),
        Spec("dynamic", {"strength": 0.3, "normalisation": "min-max", "with_gradient": True}),
    )
}


def train(spec: Spec) -> list[float]:
    """Losses of twenty gradient steps on 16 points, 3 exits and 5 outputs; numbers from sines, so from no generator."""
    targets_B = torch.arange(16) % 4
    points = torch.sin(1.7 * torch.arange(16 * 6, dtype=torch.float64) ** 2).view(16, 6)
    trunk, heads = (
        torch.cos(rate * torch.arange(size, dtype=torch.float64) ** 2).requires_grad_()
        for rate, size in ((0.9, 36), (2.3, 90))
    )
    objective, losses = build(spec), []
    for _ in range(20):
        features = (points @ trunk.view(6, 6)).tanh()
        loss = objective(features @ heads.view(3, 6, 5), targets_B)
        losses.append(loss.item())
        for weights, gradient in zip((trunk, heads), torch.autograd.grad(loss, (trunk, heads)), strict=True):
            weights.data -= 0.5 * gradient
    return losses


@pytest.mark.parametrize("name", SPECS)
def test_twenty_losses_are_the_recorded_ones(name: str):
    assert train(SPECS[name]) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-10, abs=0)


if __name__ == "__main__":
    curves = {name: train(spec) for name, spec in SPECS.items()}
    GOLDEN.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {curve}" for name, curve in curves.items()) + "\n}\n")
