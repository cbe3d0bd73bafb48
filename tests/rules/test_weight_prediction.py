from typing import Any

import pytest
import torch

from offramp.rules.weight_prediction import WeightPredictor


def predictor_of(num_exits: int = 3, **settings: Any) -> WeightPredictor:
    defaults: dict[str, Any] = {"inputs": "loss", "centre": "col", "epsilon": 0.8, "hidden": 500, "layers": 1}
    return WeightPredictor(num_exits, **defaults | settings)


@pytest.mark.parametrize(("num_exits", "numbers"), [(7, 7507), (5, 5505)])
def test_published_sizes(num_exits: int, numbers: int) -> None:
    assert sum(p.numel() for p in predictor_of(num_exits).parameters()) == numbers


def test_layers_and_inputs() -> None:
    two = predictor_of(inputs="both", hidden=10, layers=2)
    shapes = [tuple(p.shape) for p in two.parameters() if p.dim() == 2]
    assert shapes == [(10, 6), (10, 10), (3, 10)]


@pytest.mark.parametrize(("centre", "dims"), [("row", (1,)), ("col", (0,)), ("mat", (0, 1))])
def test_what_averages_to_one(centre: str, dims: tuple[int, ...]) -> None:
    weights_KB = predictor_of(centre=centre)(torch.randn(5, 3) * 20)
    assert weights_KB.shape == (3, 5)
    means = weights_KB.mean(dims)
    torch.testing.assert_close(means, torch.ones_like(means))
    for other in {(0,), (1,), (0, 1)} - {dims, (0, 1)}:
        assert not torch.allclose(weights_KB.mean(other), torch.ones(()), atol=1e-3)


def test_weights_are_not_clipped() -> None:
    """Seven exits, one output 1 and the others -1: 1 + 0.8 (1 + 5/7) and, the other way round, 1 - 0.8 (1 + 5/7)."""
    predictor = predictor_of(7)
    with torch.no_grad():
        last = predictor.perceptron[2]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([50.0, *[-50.0] * 6]))
    high = 1 + 0.8 * 12 / 7
    assert predictor(torch.zeros(1, 7))[0].item() == pytest.approx(high)
    with torch.no_grad():
        last.bias.neg_()
    assert predictor(torch.zeros(1, 7))[0].item() == pytest.approx(2 - high)
    assert 2 - high < 0


def test_without_epsilon_every_weight_is_one() -> None:
    assert predictor_of(epsilon=0.0)(torch.randn(5, 3)).eq(1).all()


@pytest.mark.parametrize("neuron", [0, 1])
def test_what_it_sees(neuron: int) -> None:
    """Cross-entropy over all outputs; confidence among the classes."""
    logits_KBC = torch.randn(3, 5, 4 + neuron, requires_grad=True)
    targets_B = torch.arange(5) % 4
    probs_KBC = logits_KBC.softmax(-1)
    loss_BK = -torch.stack([probs_KBC[:, b, targets_B[b]] for b in range(5)]).log()
    top_BK = probs_KBC[..., :4].amax(-1).T
    for inputs, wanted in {"loss": [loss_BK], "confidence": [top_BK], "both": [loss_BK, top_BK]}.items():
        features_BI = predictor_of(inputs=inputs).features(logits_KBC, targets_B, 4)
        torch.testing.assert_close(features_BI, torch.cat(wanted, 1).detach())
        assert not features_BI.requires_grad
