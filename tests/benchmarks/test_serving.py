"""The load that is offered, and that every image of it is accounted for; nothing is timed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import load
import serving

from offramp import backbones
from offramp.network import Carry
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine


@pytest.mark.parametrize("bursts", [False, True])
def test_images_are_due_as_often_as_asked_for_phase_by_phase(bursts) -> None:
    due = load.arrivals([[1000, 30], [100, 30]], bursts=bursts, seed=0)
    assert (np.diff(due) >= 0).all()
    assert (due < 30).sum() == pytest.approx(30000, rel=0.06)
    assert (due >= 30).sum() == pytest.approx(3000, rel=0.2)
    together = np.unique(due, return_counts=True)[1]
    assert together.max() == (load.LARGEST if bursts else 1)


def test_goodput_counts_what_was_answered_in_time() -> None:
    kind = np.array([load.ANSWERED, load.ANSWERED, load.REFUSED, load.LOST])
    seen = serving.Seen(np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.04, 0.2, 0.21, np.nan]), kind, 0.5)
    assert seen.goodput == 2.0
    assert seen.percentile(100) == pytest.approx(100)
    assert seen.between(0.05, 0.25).goodput == 0


@pytest.mark.parametrize("way", [serving.EXITS, serving.WHOLE, serving.BATCHES])
def test_every_image_is_answered_or_refused(way) -> None:
    """With more of them at once than there are places, through another process and back."""
    network = backbones.msdnet(
        num_classes=5, image_size=16, exits=3, base=1, growth=4, growth_factors=(1, 2), channels=4, head_channels=8
    ).eval()
    policy = Policy((0.3, 0.3, EVERYBODY))
    engine = Engine(network, policy)
    served = serving.Network("small", engine.program, policy, torch.randn(8, 3, 16, 16))
    seen, _ = serving.offered(served, way, serving.Setting(4, 1000.0), [(3000.0, 0.2)], bursts=True)
    assert len(seen.due) > 300
    assert set(seen.kind) <= {load.ANSWERED, load.REFUSED}
    assert (seen.kind == load.ANSWERED).any()
    assert np.isfinite(seen.done).all()


def test_a_whole_batch_leaves_with_its_last_image() -> None:
    class Halves(serving.AtOnce):
        """Rows with 1 in their first pixel are sure at the first exit, others only at the last."""

        def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
            sure_B = carry[0][:, 0, 0, 0] if last < 2 else torch.ones(len(carry[0]))
            return torch.stack([9 * sure_B, *[torch.zeros(len(carry[0]))] * 4], 1), carry

    network = backbones.msdnet(
        num_classes=5, image_size=16, exits=3, base=1, growth=4, growth_factors=(1, 2), channels=4, head_channels=8
    ).eval()
    policy = Policy((0.9, 0.9, EVERYBODY))
    program = Halves(Engine(network, policy).program)
    images = torch.zeros(4, 3, 16, 16)
    images[:3, 0, 0, 0] = 1
    served = serving.Network("small", program, policy, images)
    exits = {}
    for way, kind in ((serving.EXITS, serving.Scheduler), (serving.BATCHES, serving.BatchScheduler)):
        found = []
        scheduler = kind(served.model(way, 4), start=False)
        for image in images:
            scheduler.submit(serving.Request(image, found.append))
        while scheduler.turn():
            pass
        exits[way] = [answer.exit for answer in found]
    assert exits == {serving.EXITS: [1, 1, 1, 3], serving.BATCHES: [3, 3, 3, 3]}
