"""What a benchmark says of its values: bounds go with them, and decide."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import rows

VALUES = [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_value_has_the_bounds_of_its_median() -> None:
    row = rows.value("a share", "", VALUES, "none")
    assert (row["value"], row["at_least"], row["at_most"]) == (3.0, 1.0, 5.0)


@pytest.mark.parametrize("values", [VALUES, VALUES[::4]])
@pytest.mark.parametrize(
    ("limits", "met"),
    [({"below": 5.1}, True), ({"below": 5.0}, False), ({"above": 1.0}, True), ({"above": 1.1}, False)],
)
def test_a_bound_decides_and_of_few_values_the_worst(values, limits, met) -> None:
    row = rows.value("a time", "s", values, "a goal", **limits)
    assert row["met"] is met
    assert ("at_most" in row) == (len(values) >= rows.ENOUGH)
