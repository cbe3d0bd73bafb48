"""The network without exits: what an engine is compared with, and what it is where exits do not pay.

B images of a batch, N classes, C outputs of an exit.
"""

import torch
from torch import Tensor

from offramp.engine.form import Program
from offramp.engine.rows import Answers
from offramp.policy import Policy


class Straight:
    """The network run to one exit for every image, computing no other head: the plain way to an answer.

    Args:
        program: The network in the form in which it is run.
        policy: How an answer and its confidence are read off logits.
        exit: The exit that answers, from 0.
        chunk: Most images run at a time; None: all at once.
    """

    def __init__(self, program: Program, policy: Policy, exit: int, chunk: int | None) -> None:
        self.program, self.policy, self.exit, self.chunk = program, policy, exit, chunk

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Answers:
        """The exit's answers."""
        chunks = [images_BCHW] if self.chunk is None else torch.split(images_BCHW, self.chunk)
        logits_BC = torch.cat([self._logits(chunk) for chunk in chunks]) if len(chunks) > 1 else self._logits(chunks[0])
        log_probs_BN = self.policy.log_probs(self.exit, logits_BC, self.program.num_classes)
        confidence_B, _ = self.policy.measure.confidence(log_probs_BN)
        labels_B = log_probs_BN.argmax(-1)
        return Answers(labels_B, torch.full_like(labels_B, self.exit), confidence_B)

    def _logits(self, images_BCHW: Tensor) -> Tensor:
        carry = self.program.enter(images_BCHW)
        for k in range(self.exit + 1):
            carry = self.program.stage(k, carry)
        return self.program.head(self.exit, carry)
