"""Several numbers in short: their mean, and how far they lie apart."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Some numbers in short.

    Attributes:
        std: Their standard deviation (n - 1 in the denominator); None for one.
        half_range: (max - min) / 2; None for one.
    """

    mean: float
    std: float | None
    half_range: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one number or more."""
        if len(values) == 1:
            return cls(values[0], None, None, 1)
        return cls(statistics.fmean(values), statistics.stdev(values), (max(values) - min(values)) / 2, len(values))
