"""Numbers published for each exit of a network with a certain number of exits, for networks with another."""

from collections.abc import Sequence

import numpy as np


def by_depth(values: Sequence[float], num_exits: int) -> list[float]:
    """One value for each of `num_exits` exits: `values` itself for as many, else read off at the same depth.

    The first exit has depth 0 and the last 1; between two published values it goes straight. An only exit is the last.
    """
    depths = np.linspace(0.0, 1.0, num_exits) if num_exits > 1 else np.ones(1)
    read_off: list[float] = np.interp(depths * (len(values) - 1), np.arange(len(values)), values).tolist()
    return read_off
