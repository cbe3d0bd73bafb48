"""Confidence-gated training, against plain loops over samples and exits."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import offramp
from offramp.config import TrainConfig
from offramp.data import Batch
from offramp.files import RunFolder
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, LabelSmoothing, Objective, dynamic
from offramp.rules import CGT, Workbench

START = {4: [1.0, 0.7, 0.4, 0.1], 6: [1.0, 0.82, 0.64, 0.46, 0.28, 0.1]}
END = {4: [0.2, 0.5, 0.8, 1.0], 6: [0.2, 0.38, 0.56, 0.74, 0.88, 1.0]}


def by_the_book(logits_KBC: Tensor, targets_B: Tensor, rule: CGT, progress: float, num_classes: int) -> Tensor:
    K, B, C = logits_KBC.shape
    weights_KB = torch.zeros(K, B, dtype=torch.float64)
    for b in range(B):
        y, eligible, row = int(targets_B[b]), 1.0, []
        for k in range(K):
            total = sum(math.exp(logits_KBC[k, b, c].item()) for c in range(C))
            probs = [math.exp(logits_KBC[k, b, c].item()) / total for c in range(num_classes)]
            factor = (1 - progress) * START[K][k] + progress * END[K][k]
            row.append(factor * eligible + rule.leak)
            if rule.gate == "hard":
                eligible *= 0.0 if max(probs) >= rule.threshold and probs[y] == max(probs) else 1.0
            else:
                eligible *= 1 - 1 / (1 + math.exp(-(probs[y] - rule.threshold)))
        weights_KB[:, b] = torch.tensor(row, dtype=torch.float64) / sum(row) * (K if rule.total == "exits" else 1)
    return weights_KB


@pytest.mark.parametrize("progress", [0.0, pytest.param(0.3, marks=pytest.mark.slow), 0.99])
@pytest.mark.parametrize(
    "rule", [CGT("hard"), CGT("soft"), CGT("hard", 0.3, leak=0.1), CGT("soft", 0.4), CGT(total="exits")], ids=str
)
@pytest.mark.parametrize("objective", [CrossEntropy(), dynamic(with_gradient=True)])
def test_the_gradient_is_that_of_the_description(
    network: EarlyExitNet, batch: Batch, objective: Objective, rule: CGT, progress: float
) -> None:
    for head in network.exits:  # some samples are dealt with at some exits
        head[-1].weight.data *= 12
    own = deepcopy(network)
    logits_KBC = own(batch.images_BCHW)
    weights_KB = by_the_book(logits_KBC, batch.targets_B, rule, progress, own.num_classes)
    loss = (weights_KB * objective.terms(logits_KBC, batch.targets_B).loss_KB).sum() / 7
    loss.backward()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, fused=True)
    rule.prepare(Workbench(network=network, forward=network, objective=objective, optimizer=optimizer))
    outcome = rule.step(batch, progress)
    torch.testing.assert_close(outcome.loss, loss.detach())
    for found, wanted in zip(network.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-9, atol=1e-13)
    own_KB = objective.terms(logits_KBC, batch.targets_B).stats_KB.get("weight", torch.ones_like(weights_KB))
    torch.testing.assert_close(outcome.stats_KB["weight"], weights_KB * own_KB)


def test_worked_by_hand() -> None:
    """Two exits with lambda (1, 0.1): the first deals with sample 0, is sure of a wrong class at 1, unsure at 2."""
    log_probs_KBN = torch.tensor([[[0.6, 0.4], [0.7, 0.3], [0.45, 0.35]], [[0.5, 0.5]] * 3]).log()
    targets_B = torch.tensor([0, 1, 0])
    eligible = torch.tensor([0.0, 1.0, 1.0])
    second_B = (0.1 * eligible + 1e-3) / (1 + 1e-3 + 0.1 * eligible + 1e-3)
    torch.testing.assert_close(CGT("hard").weights(log_probs_KBN, targets_B, 0.0)[1], second_B)
    eligible = 1 - torch.sigmoid(torch.tensor([0.6, 0.3, 0.45]) - 0.9)
    second_B = (eligible + 1e-3) / (0.2 + 1e-3 + eligible + 1e-3)
    torch.testing.assert_close(CGT("soft").weights(log_probs_KBN, targets_B, 1.0)[1], second_B)


@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("K", [1, 2, 7])
def test_weights_of_a_sample_add_up_to_one_or_to_the_number_of_exits(gate: Any, K: int) -> None:
    log_probs_KBN = (5 * torch.randn(K, 50, 4)).log_softmax(-1)
    weight_KB = CGT(gate).weights(log_probs_KBN, torch.arange(50) % 4, 0.5)
    torch.testing.assert_close(weight_KB.sum(0), torch.ones(50))
    assert weight_KB.gt(0).all()
    scaled_KB = CGT(gate, total="exits").weights(log_probs_KBN, torch.arange(50) % 4, 0.5)
    torch.testing.assert_close(scaled_KB, K * weight_KB)
    assert CGT(gate).weights(log_probs_KBN[:, :0], torch.empty(0, dtype=torch.long), 0.5).shape == (K, 0)


def test_the_published_recipe_smooths_labels(images, network_of, tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, lr=0.02)
    objective, network = LabelSmoothing(0.1), network_of(damping=False)
    offramp.fit(network, objective, images().train, config=config, out=tmp_path / "run", rule=CGT("hard"))
    assert RunFolder(tmp_path / "run").weights.is_file()


def test_published_thresholds() -> None:
    assert CGT().settings() == {"gate": "soft", "threshold": 0.9, "leak": 1e-3}
    assert CGT("hard").settings() == {"gate": "hard", "threshold": 0.5, "leak": 1e-3}
    assert CGT(total="exits").settings() == {"gate": "soft", "threshold": 0.9, "leak": 1e-3, "total": "exits"}
