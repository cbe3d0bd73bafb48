"""Loss and gradient of every method against values worked out from the formulas, independent of this project's code."""

import json
from pathlib import Path

import pytest
import torch

from offramp.objectives import CrossEntropy, Damping, DynamicWeights, Objective, PowerSqrt, dynamic

CASES = json.loads((Path(__file__).parent / "oracles.json").read_text())["cases"]


def _objective(method: str, strength: float, alpha: float) -> Objective:
    match method:
        case "cross-entropy (all N+1 outputs)":
            return CrossEntropy()
        case "damping":
            return Damping(strength)
        case "damping lambda/sqrt(K)":
            return Damping(strength, per_sqrt_exits=True)
        case "power-sqrt":
            return PowerSqrt(strength)
        case "damping weighted R1 sample":
            return Damping(strength, weighting=DynamicWeights(alpha=alpha))
        case "dynamic R1 sample W4, weights with gradient":
            return PowerSqrt(strength, weighting=DynamicWeights(alpha=alpha, with_gradient=True))
    kind, reading, over, way = method.split()
    assert kind == "dynamic"
    return dynamic(
        strength=strength,
        alpha=alpha,
        normalisation={"R1": "max", "R2": "min-max", "R3": "tanh"}[reading],
        over={"sample": "exits", "batch": "batch"}[over],
        applied_to={"W4": "gradient", "W1": "cross-entropy", "W3": "root"}[way],
    )


@pytest.mark.parametrize(
    ("case", "result"),
    [(case, result) for case in CASES for result in case["results"]],
    ids=lambda part: part.get("method", f"K={part.get('K')}"),
)
def test_loss_and_gradient_to_every_printed_digit(case: dict, result: dict):
    objective = _objective(result["method"], case["lambda"], case["alpha"])
    logits_KBC = torch.tensor(case["logits_KBC"], dtype=torch.float64, requires_grad=True)
    loss = objective(logits_KBC, torch.tensor(case["targets_B"]))
    loss.backward()
    assert loss.item() == pytest.approx(result["loss"], abs=1e-12, rel=0)
    expected = torch.tensor(result["gradient"], dtype=torch.float64)
    torch.testing.assert_close(logits_KBC.grad, expected, atol=1e-12, rtol=0)
