import math

import pytest
import torch

from offramp.evaluation.damping import EDGES, damping_figures


def test_figures_equal_a_slow_loop():
    logits = 3 * torch.randn(300, 6, dtype=torch.float64)
    shares, values, wins, histogram = [], [], 0, [0] * (len(EDGES) - 1)
    for row in logits.tolist():
        share = math.exp(row[5]) / sum(math.exp(value) for value in row)
        shares.append(share)
        values.append(-math.log(share))
        wins += row[5] == max(row)
        histogram[max(0, max(b for b, edge in enumerate(EDGES[:-1]) if b == 0 or share >= edge))] += 1
    figures = damping_figures(logits, 5)
    assert figures.mean == pytest.approx(sum(shares) / 300, rel=1e-12)
    assert figures.a == pytest.approx(sum(values) / 300, rel=1e-12)
    assert figures.wins == pytest.approx(100 * wins / 300, rel=1e-12)
    assert list(figures.histogram) == histogram
    assert 0 < wins < 300


def test_a_is_not_the_logarithm_of_the_mean():
    """The two "values of the damping neuron": Jensen keeps them apart."""
    figures = damping_figures(torch.randn(100, 4), 3)
    assert figures.a > -math.log(figures.mean)


def test_the_stationary_point_is_seen():
    """Logits whose softmax is (1, gamma) / (1 + gamma): Proposition 1."""
    gamma = 0.005
    logits = torch.tensor([[0.0, -200.0, math.log(gamma)]]).repeat(10, 1)
    assert damping_figures(logits, 2).mean == pytest.approx(gamma / (1 + gamma), rel=1e-6)


@pytest.mark.parametrize("neuron", [-1e4, 1e4])
def test_extreme_logits_stay_finite_and_in_the_outer_bins(neuron):
    figures = damping_figures(torch.tensor([[0.0, 0.0, neuron]]), 2)
    assert figures.a == pytest.approx(max(0.0, math.log(2) - neuron), abs=1e-3)
    assert figures.histogram[0 if neuron < 0 else -1] == 1
    assert figures.wins == (100.0 if neuron > 0 else 0.0)


def test_a_tie_is_no_win():
    assert damping_figures(torch.zeros(1, 3), 2).wins == 0.0
