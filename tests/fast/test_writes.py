"""Parts that write into maps that others see."""

import pytest
from torch import Tensor, nn


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), Writes()])
@pytest.mark.parametrize("where", ["exit", "stage"])
def test_maps_that_others_write_into_leave_the_network_as_it_is(
    unit, head, small, images, equal, both, given, first: nn.Module, where: str
) -> None:
    """In a network of modules the exit's writing is seen by the next stage."""
    start = nn.Sequential(unit(3, 4), nn.Conv2d(4, 4, 3))
    stages, exits = [start, unit(4, 3)], [nn.Sequential(given(lambda p, x: x.mean((2, 3))), nn.Linear(4, 2)), head(3)]
    (exits[0] if where == "exit" else stages[1]).insert(0, first)
    form, twin = both(small(*stages, exits=exits))
    equal(form, images(), twin)
    assert "writes into a map" in form.why_not["network"]
