"""Does an engine answer as its policy does on the logits of a full forward pass?

B images, K exits, N classes. Exact equality cannot be had: kernels differ with the number of rows and folded batch norm
rounds differently, so a confidence that lies at the threshold may fall on either side of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.policy import NOBODY, PATIENCE, Policy
from offramp.runtime.rows import Answers

FLOAT32 = 1e-4
"""How far rounding may move a probability where a network is computed in float32."""
BF16 = 0.05
"""The same in bfloat16."""
INT8 = 0.1
"""The same with weights and maps in 8 bits."""


@dataclass(frozen=True)
class Agreement:
    """How an engine's answers compare with its policy's.

    Attributes:
        images: How many were compared.
        flips: Images that left at another exit, or with another class, because a confidence lies within `tolerance` of
            a threshold, or the two likeliest classes within it of each other.
        wrong: Images that differ in any other way, or whose confidence differs by more than `tolerance`.
        tolerance: In units of the measure.
    """

    images: int
    flips: int
    wrong: int
    tolerance: float

    def is_rounding(self, num_exits: int) -> bool:
        """Whether nothing is wrong, and flips are so few that rounding explains them.

        One per exit may come of the threshold itself, which is the confidence of an image that it was found on. Beyond
        these a share of `tolerance`: were confidences spread evenly, twice as many would lie within it of a threshold,
        and rounding moves them by less than a tenth of it as a rule, so this leaves room for where they crowd.
        Without a bound a flip is excused as near a threshold of 0.96 as 0.999 is, so that all images might flip.
        """
        return self.wrong == 0 and self.flips <= num_exits + self.tolerance * self.images


def agreement(answers: Answers, logits_KBC: Tensor, policy: Policy, num_classes: int, tolerance: float) -> Agreement:
    """Compare answers with `policy.choose` on the logits of the plain network's full forward pass.

    Under patience a flip of the class at one exit may change every count after it; there an image is a flip if the two
    likeliest classes lie within `tolerance` of each other at any exit up to the deeper of the two taken.
    Where only the last exit may answer an engine counts no agreements, and confidences are not compared.
    """
    chosen = policy.choose(logits_KBC, num_classes)
    labels_B, exits_B, confidence_B = (column_B.cpu() for column_B in answers)
    rows_B, depth_K1 = torch.arange(len(exits_B)), torch.arange(len(logits_KBC))[:, None]
    confidence_KB, labels_KB = policy.measure.over(logits_KBC, num_classes)
    close_KB = _near_a_tie(policy, logits_KBC, num_classes, tolerance)
    other_B = (exits_B != chosen.exits_S) | (labels_B != chosen.labels_S)
    if policy.measure.name == PATIENCE:
        if any(threshold != NOBODY for threshold in policy.thresholds[:-1]):
            other_B |= confidence_B != chosen.confidence_S
        excused_B = (close_KB & (depth_K1 <= torch.maximum(exits_B, chosen.exits_S))).any(0)
        return Agreement(len(exits_B), int((other_B & excused_B).sum()), int((other_B & ~excused_B).sum()), tolerance)
    above_KB = confidence_KB - torch.tensor(policy.thresholds)[:, None]
    may_leave_B = (above_KB >= -tolerance)[exits_B, rows_B] | (exits_B == len(logits_KBC) - 1)
    had_to_leave_B = ((above_KB > tolerance) & (depth_K1 < exits_B)).any(0)
    same_label_B = (labels_B == labels_KB[exits_B, rows_B]) | close_KB[exits_B, rows_B]
    same_confidence_B = torch.isclose(
        confidence_B.double(), confidence_KB[exits_B, rows_B].double(), rtol=0, atol=tolerance, equal_nan=True
    )
    right_B = may_leave_B & ~had_to_leave_B & same_label_B & same_confidence_B
    return Agreement(len(exits_B), int((other_B & right_B).sum()), int((~right_B).sum()), tolerance)


def _near_a_tie(policy: Policy, logits_KBC: Tensor, num_classes: int, tolerance: float) -> Tensor:
    """Where `[K, B]` the two likeliest classes lie within `tolerance` of each other."""
    near = []
    for k, logits_BC in enumerate(logits_KBC):
        first_second_B2 = policy.log_probs(k, logits_BC, num_classes).topk(2, -1).values.exp()
        near.append(first_second_B2[:, 0] - first_second_B2[:, 1] <= tolerance)
    return torch.stack(near)
