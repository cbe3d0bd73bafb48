"""The network without exits: what an engine is compared with, and what it is where exits do not pay.

B images of a batch, N classes, C outputs of an exit.
"""

import time

import torch
from torch import Tensor

from offramp.policy import Policy
from offramp.runtime.form import Program
from offramp.runtime.plan import Tally
from offramp.runtime.rows import Answers, nothing


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
    def __call__(self, images_BCHW: Tensor, tally: Tally | None = None) -> Answers:
        """The exit's answers; what is spent is added to `tally`, which changes nothing in how they are computed."""
        chunks = [images_BCHW] if self.chunk is None else torch.split(images_BCHW, self.chunk)
        pieces = [self._logits(chunk, tally) for chunk in chunks]
        started = now(self.program, tally)
        logits_BC = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        log_probs_BN = self.policy.log_probs(self.exit, logits_BC, self.program.num_classes)
        confidence_B, _ = self.policy.measure.confidence(log_probs_BN)
        labels_B = log_probs_BN.argmax(-1)
        answers = Answers(labels_B, torch.full_like(labels_B, self.exit), confidence_B)
        if tally is not None:
            took = now(self.program, tally) - started
            tally.seconds_K[self.exit] += took
            tally.exit_seconds_K[self.exit] += took
            tally.exits_K[self.exit] += len(images_BCHW)
        return answers

    def _logits(self, images_BCHW: Tensor, tally: Tally | None) -> Tensor:
        carry = self.program.enter(images_BCHW)
        for k in range(self.exit):
            started = now(self.program, tally)
            carry = self.program.stage(k, carry)
            note(self.program, tally, k, len(images_BCHW), 0, started)
        started = now(self.program, tally)
        carry = self.program.stage(self.exit, carry)
        asked_at = now(self.program, tally)
        logits_BC = self.program.head(self.exit, carry)
        note(self.program, tally, self.exit, len(images_BCHW), len(images_BCHW), started, asked_at)
        return logits_BC


@torch.inference_mode()
def no_answers(program: Program, policy: Policy) -> Answers:
    """The answers for no images: on the program's device, in the types of others."""
    logits_BC = torch.empty(0, program.num_classes, dtype=program.dtype, device=program.device)
    confidence_B, _ = policy.measure.confidence(policy.log_probs(0, logits_BC, program.num_classes))
    return nothing(confidence_B)


def wait(program: Program) -> None:
    """Wait until the program's device has done what it was given."""
    if program.device.type == "cuda":
        torch.cuda.synchronize(program.device)


def now(program: Program, tally: Tally | None) -> float:
    """Seconds on the clock once the device is done; 0, without waiting, where no times are taken."""
    if tally is None or not tally.timed:
        return 0.0
    wait(program)
    return time.perf_counter()


def note(
    program: Program,
    tally: Tally | None,
    k: int,
    stage_rows: int,
    head_rows: int,
    started: float,
    asked_at: float | None = None,
) -> None:
    """Add to a tally what stage k, begun at `started`, and its exit, at `asked_at` if it was asked, have taken."""
    if tally is not None:
        ended = now(program, tally)
        tally.stage_rows_K[k] += stage_rows
        tally.head_rows_K[k] += head_rows
        tally.seconds_K[k] += ended - started
        tally.exit_seconds_K[k] += 0.0 if asked_at is None else ended - asked_at
