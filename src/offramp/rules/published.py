"""Numbers published for each exit of a network with a certain number of exits, for networks with another."""

from collections.abc import Sequence


def by_depth(values: Sequence[float], num_exits: int) -> list[float]:
    """One value for each of `num_exits` exits: `values` itself for as many, else read off at the same depth.

    The first exit has depth 0 and the last 1; between two published values it goes straight. An only exit is the last.
    """
    last = len(values) - 1
    read_off = []
    for k in range(num_exits):
        place = last * k / (num_exits - 1) if num_exits > 1 else last
        left = min(int(place), last - 1)
        read_off.append(values[left] + (place - left) * (values[left + 1] - values[left]))
    return read_off
