"""The statistics of the damping objectives against slow loops. K exits, B images, C = N + 1 outputs."""

import math

import pytest
import torch

from offramp.objectives import Damping, DynamicWeights, PowerSqrt
from offramp.objectives.damped import DampedObjective

STRENGTH, ALPHA = 0.3, 0.5


def _slow(logits: list[list[list[float]]], targets: list[int], form: str, applied_to: str | None) -> dict[str, list]:
    """Every statistic, one exit and sample at a time."""
    names = ("F_true", "F_damping", "a", "weight", "gamma", "off_or_reversed")
    found = {name: [[0.0] * len(targets) for _ in logits] for name in names}
    for b, target in enumerate(targets):
        values = []
        for k, exit_logits in enumerate(logits):
            total = sum(math.exp(z) for z in exit_logits[b])
            found["F_true"][k][b] = math.exp(exit_logits[b][target]) / total
            found["F_damping"][k][b] = math.exp(exit_logits[b][-1]) / total
            found["a"][k][b] = -math.log(found["F_damping"][k][b])
            values.append(found["a"][k][b])
        center = [a - sum(values) / len(values) for a in values]
        for k, a in enumerate(values):
            weight = 1 + ALPHA * center[k] / max(abs(c) for c in center) if applied_to else 1.0
            weights = [1 + ALPHA * c / max(abs(c) for c in center) for c in center]
            if form == "damping":
                gamma = STRENGTH
            elif applied_to == "root":
                gamma = STRENGTH * weight * a / math.hypot(*(w * v for w, v in zip(weights, values, strict=True)))
            else:
                gamma = STRENGTH * a / math.hypot(*values)
            if applied_to == "cross-entropy":
                gamma /= weight
            found["weight"][k][b], found["gamma"][k][b] = weight, gamma
            found["off_or_reversed"][k][b] = float(found["F_true"][k][b] >= 1 / (1 + gamma))
    return found


@pytest.mark.parametrize(
    ("form", "applied_to"),
    [
        ("damping", None),
        ("damping", "gradient"),
        ("damping", "cross-entropy"),
        ("power-sqrt", None),
        ("power-sqrt", "gradient"),
        ("power-sqrt", "cross-entropy"),
        ("power-sqrt", "root"),
    ],
)
def test_statistics_are_what_slow_loops_find(form: str, applied_to: str | None):
    weighting = DynamicWeights(alpha=ALPHA, applied_to=applied_to) if applied_to else None
    objective: DampedObjective = {"damping": Damping, "power-sqrt": PowerSqrt}[form](STRENGTH, weighting=weighting)
    logits_KBC = 3 * torch.randn(3, 40, 5, dtype=torch.float64)
    targets_B = torch.randint(4, (40,))
    stats = objective.terms(logits_KBC, targets_B).stats_KB
    expected = _slow(logits_KBC.tolist(), targets_B.tolist(), form, applied_to)
    assert stats.keys() == expected.keys()
    assert 0 < stats["off_or_reversed"].sum() < 120
    for name, value in expected.items():
        torch.testing.assert_close(stats[name], torch.tensor(value, dtype=torch.float64), rtol=1e-11, atol=0)


@pytest.mark.parametrize("applied_to", ["cross-entropy", "root"])
def test_weights_that_act_elsewhere_are_the_formulas_as_written(applied_to: str):
    """sum w ce + lambda P (cross-entropy alone), sum w ce + lambda sqrt(sum (w a)^2) (root), differentiated whole."""
    logits_KBC = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    targets_B = torch.tensor([0, 1, 4])
    objective = PowerSqrt(STRENGTH, weighting=DynamicWeights(applied_to=applied_to))
    loss = objective(logits_KBC, targets_B)
    weight_KB = objective.terms(logits_KBC, targets_B).stats_KB["weight"]
    log_F_KBC = logits_KBC.log_softmax(-1)
    a_KB = -log_F_KBC[..., -1] * (weight_KB if applied_to == "root" else 1)
    cross_entropy_KB = -weight_KB * log_F_KBC[:, torch.arange(3), targets_B]
    naive = cross_entropy_KB.mean(1).sum() + STRENGTH * a_KB.square().sum(0).sqrt().mean()
    torch.testing.assert_close(loss, naive, rtol=1e-13, atol=0)
    gradients = [torch.autograd.grad(value, logits_KBC, retain_graph=True)[0] for value in (loss, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-15)


def test_a_weight_of_0_leaves_the_coefficient_finite():
    """With alpha 1 the exit with the smallest a may weigh nothing: only damping is left, its gradient reversed."""
    weighting = DynamicWeights(alpha=1, applied_to="cross-entropy")
    logits_KBC = torch.tensor([[[0.0, 0.0, 5.0]], [[0.0, 0.0, -5.0]], [[0.0, 0.0, -5.0]]])
    stats = PowerSqrt(0.1, weighting=weighting).terms(logits_KBC, torch.tensor([0])).stats_KB
    assert stats["weight"][0, 0] == 0
    assert stats["gamma"].isfinite().all()
    assert stats["off_or_reversed"][:, 0].tolist() == [1.0, 0.0, 0.0]
