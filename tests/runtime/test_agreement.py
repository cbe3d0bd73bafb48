import math

import pytest
import torch
from torch import Tensor

from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import BF16, Agreement, Answers, agreement

TOLERANCE = 0.01
# The first class's probabilities at three exits; there are two classes.
PROBS_KB = torch.tensor([[0.6, 0.695, 0.9, 0.5], [0.7, 0.8, 0.9, 0.796], [0.9, 0.1, 0.9, 0.502]])
POLICY = Policy((0.7, 0.8, EVERYBODY))


def logits(probs_KB: Tensor) -> Tensor:
    return torch.stack([probs_KB, 1 - probs_KB], -1).log()


def compare(answers: Answers, policy: Policy = POLICY, logits_KBC: Tensor | None = None) -> tuple[int, int]:
    found = agreement(answers, logits(PROBS_KB) if logits_KBC is None else logits_KBC, policy, 2, TOLERANCE)
    assert (found.images, found.tolerance) == (len(answers.labels_B), TOLERANCE)
    return found.flips, found.wrong


def chosen(policy: Policy = POLICY, logits_KBC: Tensor | None = None) -> Answers:
    choice = policy.choose(logits(PROBS_KB) if logits_KBC is None else logits_KBC, 2)
    return Answers(choice.labels_S.clone(), choice.exits_S.clone(), choice.confidence_S.clone())


def at(image: int, *, label: int | None = None, exit: int | None = None, confidence: float | None = None) -> Answers:
    """The policy's own answers, but for one image."""
    answers = chosen()
    for column_B, value in zip(answers, (label, exit, confidence), strict=True):
        if value is not None:
            column_B[image] = value
    return answers


def test_the_policys_own_answers_agree() -> None:
    assert chosen().exits_B.tolist() == [2, 1, 0, 2]
    assert compare(chosen()) == (0, 0)


def test_a_confidence_at_the_threshold_may_fall_on_either_side() -> None:
    assert compare(at(1, exit=0, confidence=0.7)) == (1, 0)  # left early: 0.695 and the threshold 0.7
    assert compare(at(3, exit=1, confidence=0.8, label=0)) == (1, 0)  # 0.796 and 0.8
    assert compare(at(1, exit=2, confidence=0.9, label=1)) == (1, 0)  # went on from exit 1: 0.8 and 0.8


def test_a_confidence_further_off_is_wrong() -> None:
    assert compare(at(0, exit=0, confidence=0.6)) == (0, 1)  # 0.6 at a threshold of 0.7
    assert compare(at(2, exit=1, confidence=0.9)) == (0, 1)  # 0.9 had to leave at once
    assert compare(at(0, exit=1, confidence=0.7)) == (0, 1)


def test_after_a_flip_the_policy_goes_on_to_hold() -> None:
    probs_KB = torch.tensor([[0.7], [0.95], [0.9]])  # may go on from the first exit, has to leave at the second
    went_too_far = Answers(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.9]))
    assert compare(went_too_far, logits_KBC=logits(probs_KB)) == (0, 1)
    left = Answers(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.95]))
    assert compare(left, logits_KBC=logits(probs_KB)) == (1, 0)


def test_a_flip_of_exits_excuses_no_other_label_or_confidence() -> None:
    assert compare(at(1, exit=0, confidence=0.7, label=1)) == (0, 1)
    assert compare(at(1, exit=0, confidence=0.8)) == (0, 1)


def test_a_label_may_flip_only_at_a_tie() -> None:
    assert compare(at(3, label=1)) == (1, 0)  # 0.502 and 0.498
    assert compare(at(0, label=1)) == (0, 1)


def test_a_confidence_may_drift_within_the_tolerance() -> None:
    assert compare(at(0, confidence=0.909)) == (0, 0)
    assert compare(at(0, confidence=0.911)) == (0, 1)


def test_what_is_not_a_number_agrees_only_with_the_same() -> None:
    assert compare(at(0, confidence=math.nan)) == (0, 1)
    broken_KBC = logits(PROBS_KB)
    broken_KBC[:, 0] = math.nan
    answers = chosen(logits_KBC=broken_KBC)
    assert answers.exits_B[0] == 2
    assert compare(answers, logits_KBC=broken_KBC) == (0, 0)
    answers.confidence_B[0] = 0.9
    assert compare(answers, logits_KBC=broken_KBC) == (0, 1)
    answers = chosen(logits_KBC=broken_KBC)
    answers.exits_B[0] = 1
    assert compare(answers, logits_KBC=broken_KBC) == (0, 1)


def test_nobody_is_nobody() -> None:
    policy = Policy((NOBODY, 0.8, EVERYBODY))
    assert compare(chosen(policy), policy) == (0, 0)
    assert compare(at(2, exit=0), policy) == (0, 1)


@pytest.mark.parametrize(("first", "expected"), [(0.504, (1, 0)), (0.6, (0, 1))])
def test_under_patience_a_tie_at_any_exit_on_the_way_is_an_excuse(first, expected) -> None:
    policy = Policy((1.0, 1.0, EVERYBODY), Measure("patience"))
    logits_KBC = logits(torch.tensor([[first], [0.9], [0.9]]))
    assert chosen(policy, logits_KBC).exits_B.tolist() == [1]
    other = Answers(
        torch.tensor([0]), torch.tensor([2]), torch.tensor([1.0])
    )  # as if the first class had not been first
    assert compare(other, policy, logits_KBC) == expected
    assert compare(chosen(policy, logits_KBC), policy, logits_KBC) == (0, 0)


def test_flips_are_rounding_where_they_are_few() -> None:
    """Near a threshold of 0.96 all that is sure may go either way, but not all of it does so by rounding."""
    sure_KB = torch.tensor([[0.999], [0.999], [0.999]]).expand(-1, 100)
    policy = Policy((0.96, 0.96, EVERYBODY))
    answers = chosen(policy, logits(sure_KB))
    answers.exits_B[:] = 1
    found = agreement(answers, logits(sure_KB), policy, 2, BF16)
    assert (found.flips, found.wrong) == (100, 0)
    assert not found.is_rounding(3)
    assert Agreement(1000, 3 + 50, 0, BF16).is_rounding(3)
    assert not Agreement(1000, 3 + 51, 0, BF16).is_rounding(3)
    assert not Agreement(1000, 0, 1, BF16).is_rounding(3)


def test_no_images() -> None:
    empty = logits(PROBS_KB)[:, :0]
    assert compare(chosen(POLICY, empty), POLICY, empty) == (0, 0)
