"""Does an engine answer as its policy does on the logits of a full forward pass?

B images, K exits, N classes. Exact equality cannot be had: kernels differ with the number of rows and folded batch norm
rounds differently, so a confidence that lies at the threshold may fall on either side of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.engine.rows import Answers
from offramp.policy import PATIENCE, Policy

FLOAT32, BF16 = 1e-4, 0.05  # how far rounding may move a probability


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


def agreement(answers: Answers, logits_KBC: Tensor, policy: Policy, num_classes: int, tolerance: float) -> Agreement:
    """Compare answers with `policy.choose` on the logits of the plain network's full forward pass.

    Under patience a flip of the class at one exit may change every count after it; there an image is a flip if the two
    likeliest classes lie within `tolerance` of each other at any exit up to the deeper of the two taken.
    """
    chosen = policy.choose(logits_KBC, num_classes)
    exits_B, labels_B = answers.exits_B.cpu(), answers.labels_B.cpu()
    other_exit_B, other_label_B = exits_B != chosen.exits_S, labels_B != chosen.labels_S
    confidence_KB, _ = policy.measure.over(logits_KBC, num_classes)
    close_KB = _near_a_tie(policy, logits_KBC, num_classes, tolerance)
    deeper_B = torch.maximum(exits_B, chosen.exits_S)
    until_KB = torch.arange(len(logits_KBC))[:, None] <= deeper_B
    if policy.measure.name == PATIENCE:
        excused_B = (close_KB & until_KB).any(0)
        other_B = other_exit_B | other_label_B | (answers.confidence_B.cpu() != chosen.confidence_S)
        return Agreement(len(exits_B), int((other_B & excused_B).sum()), int((other_B & ~excused_B).sum()), tolerance)
    first_B = torch.minimum(exits_B, chosen.exits_S)  # where one of the two has decided otherwise
    rows_B = torch.arange(len(first_B))
    gap_B = (confidence_KB[first_B, rows_B] - torch.tensor(policy.thresholds)[first_B]).abs()
    at_exit_B = other_exit_B & (gap_B <= tolerance)
    here_B = ~other_exit_B
    drift_B = (answers.confidence_B.cpu() - confidence_KB[exits_B, rows_B]).abs()
    at_label_B = here_B & other_label_B & close_KB[exits_B, rows_B]
    excused_B = at_exit_B | at_label_B | (here_B & ~other_label_B)
    wrong_B = ~excused_B | ~((drift_B <= tolerance) | drift_B.isnan())
    return Agreement(len(exits_B), int(((at_exit_B | at_label_B) & ~wrong_B).sum()), int(wrong_B.sum()), tolerance)


def _near_a_tie(policy: Policy, logits_KBC: Tensor, num_classes: int, tolerance: float) -> Tensor:
    """Where `[K, B]` the two likeliest classes lie within `tolerance` of each other."""
    near = []
    for k, logits_BC in enumerate(logits_KBC):
        first_second_B2 = policy.log_probs(k, logits_BC, num_classes).topk(2, -1).values.exp()
        near.append(first_second_B2[:, 0] - first_second_B2[:, 1] <= tolerance)
    return torch.stack(near)
