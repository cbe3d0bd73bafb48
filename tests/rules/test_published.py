import pytest

from offramp.rules.published import by_depth


@pytest.mark.parametrize(
    ("num_exits", "wanted"),
    [
        (4, [1.0, 0.7, 0.4, 0.1]),
        (7, [1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1]),
        (3, [1.0, 0.55, 0.1]),
        (2, [1.0, 0.1]),
        (1, [0.1]),
    ],
)
def test_values_are_read_off_at_the_same_depth(num_exits: int, wanted: list[float]) -> None:
    assert by_depth((1.0, 0.7, 0.4, 0.1), num_exits) == pytest.approx(wanted)


def test_between_two_published_values_it_goes_straight() -> None:
    assert by_depth((0.0, 1.0, 0.0), 5) == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
