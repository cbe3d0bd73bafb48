"""Ctrl-C and SIGTERM while training: finish the step, save, leave with the usual status."""

import signal
import threading
from types import FrameType
from typing import Any

import torch

from offramp import processes
from offramp.devices import PendingCopy, sent


class StoppedError(SystemExit):
    """Training was stopped by a signal; the state is saved. Its code is the usual exit status, 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted in `number`; a second one acts at once, as it always does."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._vote: PendingCopy | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python sets signal handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def agreed(self, device: torch.device) -> int | None:
        """`number`, or that of another process: the same answer in all, so that all leave after the same step.

        Every process must call it as often. The answer is that of the call before, so that a device never waits.
        """
        if not processes.active():
            return self.number
        vote = sent(torch.tensor(float(self.number or 0)), device)
        before, self._vote = self._vote, PendingCopy(processes.max_over_all(vote))
        return None if before is None else int(before.read()) or None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
