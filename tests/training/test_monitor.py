from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp import data
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.rules import Outcome, Workbench
from offramp.storage import load_tensors, save_tensors
from offramp.training.monitor import EpochSums, Placement, watch


def outcome(size: int) -> tuple[Outcome, torch.Tensor]:
    logits = torch.randn(2, size, 4)
    return Outcome(torch.rand(()), logits, {"F_true": torch.rand(2, size)}), torch.randint(3, (size,))


def test_means_are_over_images_not_over_batches() -> None:
    sums, loss, correct, stat = EpochSums(), 0.0, torch.zeros(2), torch.zeros(2)
    for size in (5, 3, 1):
        step, targets = outcome(size)
        sums.add(step, targets, size, num_classes=3)
        loss += step.loss.item() * size / 9
        correct += (step.logits_KBC[..., :3].argmax(-1) == targets).sum(1) / 9
        stat += step.stats_KB["F_true"].sum(1) / 9
    means = sums.means()
    assert means["loss"] == pytest.approx(loss)
    assert means["train_top1"] == pytest.approx((100 * correct).tolist())
    assert means["stats"]["F_true"] == pytest.approx(stat.tolist())


def test_sums_of_a_half_done_epoch_come_back_bit_by_bit(tmp_path: Path) -> None:
    steps = [(*outcome(4), 4) for _ in range(6)]
    whole, first, second = EpochSums(), EpochSums(), EpochSums()
    for step, targets, size in steps:
        whole.add(step, targets, size, 3)
    for step, targets, size in steps[:3]:
        first.add(step, targets, size, 3)
    tensors, values = first.state()
    save_tensors(tmp_path / "sums", tensors)
    second.load_state(load_tensors(tmp_path / "sums")[0], values, torch.device("cpu"))
    for step, targets, size in steps[3:]:
        second.add(step, targets, size, 3)
    assert second.means() == whole.means()


def test_watching_is_done_in_eval_mode_and_counts_every_image_once() -> None:
    torch.manual_seed(1)
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))]
    network = EarlyExitNet(stages, [nn.Sequential(nn.Flatten(), nn.Linear(144, 3))], damping=True)
    pixels = np.random.default_rng(0).integers(0, 255, (70, 1, 8, 8)).astype(np.uint8)
    split = data.arrays(pixels, np.arange(70) % 2, batch_size=16).val.search
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    bench = Workbench(network=network, forward=network, objective=CrossEntropy(), optimizer=optimizer)
    found = watch(bench, split, Placement(torch.device("cpu"), channels_last=False))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    batches = list(split.batches())
    images, targets = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    log_probs = network.eval()(images).log_softmax(-1)[0, :, :2]
    assert found["search_top1"] == pytest.approx([100 * (log_probs.argmax(1) == targets).double().mean().item()])
    assert found["search_nll"] == pytest.approx([-log_probs[range(len(targets)), targets].double().mean().item()])
