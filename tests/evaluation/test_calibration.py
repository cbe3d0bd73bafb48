import pytest
import torch

from offramp.errors import UsageError
from offramp.evaluation import reliability


def slow_ece(confidence: list[float], correct: list[bool], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            sure = sum(confidence[i] for i in inside) / len(inside)
            right = sum(correct[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(sure - right)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_a_slow_loop(bins):
    confidence, correct = torch.rand(500, dtype=torch.float64), torch.rand(500) < 0.6
    expected = slow_ece(confidence.tolist(), correct.tolist(), bins)
    assert reliability(confidence, correct, bins).ece == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_ece_equals_torchmetrics(share):
    """`share`: what the damping neuron leaves the classes."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes seconds

    probabilities = share * (2 * torch.randn(3000, 10, dtype=torch.float64)).softmax(-1)
    targets = torch.where(torch.rand(3000) < 0.5, probabilities.argmax(-1), torch.randint(0, 10, (3000,)))
    confidence, classes = probabilities.max(-1)
    expected = multiclass_calibration_error(probabilities, targets, num_classes=10, n_bins=15, norm="l1")
    # torchmetrics bins in float32.
    assert reliability(confidence, classes == targets).ece == pytest.approx(expected.item(), abs=1e-6)


def test_bins_hold_every_image_once():
    diagram = reliability(torch.cat([torch.rand(1000), torch.tensor([0.0, 1.0])]), torch.ones(1002))
    assert sum(diagram.images) == 1002
    assert len(diagram.images) == len(diagram.confidence) == len(diagram.accuracy) == 15
    for b, (sure, right) in enumerate(zip(diagram.confidence, diagram.accuracy, strict=True)):
        assert b / 15 - 1e-7 <= sure <= (b + 1) / 15 + 1e-7
        assert right == 1.0


def test_an_empty_bin_has_no_mean():
    diagram = reliability(torch.tensor([0.99, 0.98]), torch.tensor([True, False]))
    assert diagram.images == (0,) * 14 + (2,)
    assert diagram.accuracy == (None,) * 14 + (0.5,)
    assert diagram.ece == pytest.approx(0.485)


def test_an_edge_belongs_to_the_bin_below():
    assert reliability(torch.tensor([0.5], dtype=torch.float64), torch.tensor([1.0]), bins=2).images == (1, 0)


def test_perfect_calibration_has_no_error():
    correct = torch.tensor([True] * 3 + [False])
    assert reliability(torch.full((4,), 0.75), correct).ece == 0.0


@pytest.mark.parametrize("confidence", [[], [0.5, 0.5], [1.5], [float("nan")]])
def test_what_is_no_confidence_is_refused(confidence):
    with pytest.raises(UsageError):
        reliability(torch.tensor(confidence), torch.ones(0 if not confidence else 1))
