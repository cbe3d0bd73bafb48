"""What certificates on the test images' logits save."""

import dataclasses

import pytest
import torch

from offramp.evaluation import Record
from offramp.paper.certified import certified


def network_of(sure: torch.Tensor, right: torch.Tensor) -> Record:
    """Logits of two classes: exit 1 is `right` about the images and as `sure` as that, exit 2 is right about all."""
    targets_S = torch.arange(len(sure)) % 2
    answers_S = torch.where(right, targets_S, 1 - targets_S)
    noise_S = torch.rand(len(sure), generator=torch.Generator().manual_seed(0))  # no two images alike
    first_SC = torch.nn.functional.one_hot(answers_S, 2) * (sure + noise_S)[:, None]
    last_SC = torch.nn.functional.one_hot(targets_S, 2) * (5 + noise_S)[:, None]
    return Record.of(torch.stack([first_SC, last_SC]), targets_S, split="mine/test", class_names=("a", "b"))


def test_images_that_are_surely_right_leave_and_the_others_do_not() -> None:
    """Exit 1, a quarter of the whole, is sure and right about three of four images, unsure of the fourth."""
    place = torch.arange(10_000)
    unsure = place // 2 % 4 == 0
    record = network_of(torch.where(unsure, 0.5, 4.0), ~unsure | (place % 16 < 8))
    found = certified(record, (100, 400))
    assert (found.drop, found.confidence, found.images) == (0.2, 0.95, 10_000)
    assert found.leaving == (pytest.approx(0.75, abs=0.01), pytest.approx(0.25, abs=0.01))
    assert found.speed_up == pytest.approx(400 / (0.75 * 100 + 0.25 * 400), abs=0.05)


def test_what_cannot_be_certified_saves_nothing() -> None:
    """An exit that is as sure where it errs: 5 % of the images would be lost. And 100 images prove nothing of 0.2 %."""
    place = torch.arange(10_000)
    record = network_of(torch.full((10_000,), 4.0), place % 20 != 0)
    assert dataclasses.astuple(certified(record, (100, 400)))[3:] == (1.0, (0.0, 1.0))
    few = network_of(torch.full((100,), 4.0), torch.ones(100, dtype=torch.bool))
    assert certified(few, (100, 400)).speed_up == 1


def test_a_single_exit_has_nothing_to_leave_early() -> None:
    record = network_of(torch.ones(100), torch.ones(100, dtype=torch.bool))
    assert certified(dataclasses.replace(record, logits_KSC=record.logits_KSC[1:]), (400,)) is None
