"""What shows, while a command works, how far it is. Nothing here imports torch."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]  # called with a part's name, images done and images in all
Bars = Callable[[], AbstractContextManager[Progress | None]]
Countdown = Callable[[], AbstractContextManager[Callable[[float], object]]]


@dataclass(frozen=True)
class Watch:
    """What is called while a command works; by default nothing is shown.

    Attributes:
        bars: Shows progress while data sets are read; closed before anything is timed.
        countdown: Shows what share is done, in [0, 1], between rounds of timing, while the context that it gives is
            open.
    """

    note: Callable[[str], None] = lambda text: None
    bars: Bars = contextlib.nullcontext
    countdown: Countdown = lambda: contextlib.nullcontext(lambda share: None)


QUIET = Watch()
