"""How far the global generators of random numbers have been used: the code that is traced or tried may draw some."""

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# One thread at a time tries or traces a model's code: random state, and what torch.fx replaces, is the process's.
ONE_AT_A_TIME = threading.RLock()


class RandomState:
    """The state of the global generators of torch (that of the CPU), Python and NumPy when it is made."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.python = random.getstate()
        self.numpy: Any = np.random.get_state(legacy=False)

    def is_unchanged(self) -> bool:
        """Whether nothing has been drawn since."""
        now = RandomState()
        return torch.equal(now.torch, self.torch) and now.python == self.python and _is_same(now.numpy, self.numpy)

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(value, b[key]) for key, value in a.items())
    return bool(np.array_equal(a, b))


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn inside, on GPUs too, leaves no trace outside. Other threads wait here until it is over."""
    with ONE_AT_A_TIME:
        before = RandomState()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            try:
                yield
            finally:
                before.restore()
