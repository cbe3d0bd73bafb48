"""Random numbers that are functions of their counters alone: no state to save, the same in every process.

A number is splitmix64's finaliser chained over (purpose, seed, epoch, index, ...). NumPy's generators do not promise
the same permutation in every release; this does, so that a run can be continued after an upgrade.
"""

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Purpose(enum.IntEnum):
    """What numbers are for; those of two purposes are independent."""

    ORDER = 1
    AUGMENTATION = 2
    HELD_OUT = 3
    LIMIT = 4
    TEST_SHARE = 5
    STEP = 6  # of training: whatever a network or a rule draws there
    XRAY = 7  # which training images are watched
    PAIRS = 8  # which garments share an image of fashion-pairs


def hashes(purpose: Purpose, *counters: int | IntArray) -> npt.NDArray[np.uint64]:
    """64 random bits for each element of the counters, broadcast together (at least one dimension)."""
    state = _mix(np.array([purpose], dtype=np.uint64))
    for counter in counters:
        # An int is wrapped first: NumPy refuses negative ones, and warns on scalars that overflow.
        word = np.array([counter % 2**64], np.uint64) if isinstance(counter, int) else counter.astype(np.uint64)
        state = _mix((state + _GOLDEN) ^ word)
    return state


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))


def permutation(num_items: int, purpose: Purpose, *counters: int) -> IntArray:
    """A uniformly random order of `range(num_items)`."""
    keys = hashes(purpose, *counters, np.arange(num_items))
    return np.argsort(keys, kind="stable").astype(np.int64)  # stable: equal keys, if ever, keep one order everywhere


@dataclass(frozen=True)
class Draw:
    """The random numbers that augment images in one epoch of one run."""

    seed: int
    epoch: int

    def uniforms(self, indices_B: IntArray, count: int) -> npt.NDArray[np.float64]:
        """`[B, count]` numbers in [0, 1) for the images `indices_B`, each a function of (seed, epoch, index) alone."""
        bits = hashes(Purpose.AUGMENTATION, self.seed, self.epoch, indices_B[:, None], np.arange(count)[None, :])
        return (bits >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)
