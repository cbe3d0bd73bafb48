"""How far the global generators of random numbers have been used: for those who trace code that may draw some."""

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# One thread at a time tries or traces somebody's code: what is drawn, and what torch.fx replaces, is the process's.
ONE_AT_A_TIME = threading.RLock()


class Drawn:
    """How far the global generators of torch (that of the CPU), Python and NumPy have been used by now."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.python = random.getstate()
        self.numpy: Any = np.random.get_state(legacy=False)

    def is_still_so(self) -> bool:
        """Whether nothing has been drawn since."""
        now = Drawn()
        return torch.equal(now.torch, self.torch) and now.python == self.python and _is_same(now.numpy, self.numpy)

    def restore(self) -> None:
        """Go back to that."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    return bool(np.array_equal(one, other))


@contextlib.contextmanager
def drawing_apart() -> Iterator[None]:
    """What is drawn inside, on GPUs as well, leaves no trace outside. Other threads wait here until it is over."""
    with ONE_AT_A_TIME:
        before = Drawn()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            try:
                yield
            finally:
                before.restore()
