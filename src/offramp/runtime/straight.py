"""The network without exits: what an engine is compared with, and what it is where exits do not pay.

B images of a batch, N classes, C outputs of an exit.
"""

import time

import torch
from torch import Tensor

from offramp.policy import Policy
from offramp.runtime.plan import Tally
from offramp.runtime.program import Program, quiet_torch
from offramp.runtime.rows import Answers


class Straight:
    """The network run to one exit (from 0) for every image, computing no other head: the plain way to an answer.

    Answers and confidences are read as the policy says. At most `chunk` images run at a time; None: all at once.
    """

    def __init__(self, program: Program, policy: Policy, exit: int, chunk: int | None) -> None:
        self.program, self.policy, self.exit, self.chunk = program, policy, exit, chunk

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor, tally: Tally | None = None) -> Answers:
        """The exit's answers; what is spent is added to `tally`, which changes nothing in how they are computed."""
        with quiet_torch(self.program):
            started = now(self.program, tally)
            chunks = [images_BCHW] if self.chunk is None else torch.split(images_BCHW, self.chunk)
            pieces = [self.program.straight(chunk, self.exit) for chunk in chunks]
            logits_BC = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            note(self.program, tally, 0, self.exit, len(images_BCHW), started)
            log_probs_BN = self.policy.log_probs(self.exit, logits_BC, self.program.num_classes)
            confidence_B, _ = self.policy.measure.confidence(log_probs_BN)
            labels_B = log_probs_BN.argmax(-1)
            if tally is not None:
                tally.exits_K[self.exit] += len(images_BCHW)
            return Answers(labels_B, torch.full_like(labels_B, self.exit), confidence_B)


def now(program: Program, tally: Tally | None) -> float:
    """Seconds on the clock once the device is done; 0, without waiting, where no times are taken."""
    if tally is None or not tally.timed:
        return 0.0
    program.wait()
    return time.perf_counter()


def note(program: Program, tally: Tally | None, first: int, last: int, rows: int, started: float) -> None:
    """Add to a tally what stages `first` to `last` with exit `last`, begun at `started`, have taken."""
    if tally is not None:
        tally.seconds_K[last] += now(program, tally) - started
        tally.head_rows_K[last] += rows
        for k in range(first, last + 1):
            tally.stage_rows_K[k] += rows
