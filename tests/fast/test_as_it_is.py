"""What cannot be planned is run as it is."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def count(part: nn.Module, x: Tensor) -> Tensor:
    part.count += 1
    return part.unit(x) * part.count


def without_gradients(part: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return part.unit(x)


def without_autocast(part: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return part.unit(x)


def remember(part: nn.Module, x: Tensor) -> Tensor:
    part.last = part.unit(x)
    return part.last * 2


def second_of_list(part: nn.Module, x: Any) -> Any:
    return part.unit(x[1] if isinstance(x, list) else x)


REFUSED: dict[str, list[Callable[..., Any]]] = {  # test_plan.py has more
    "values": [lambda p, x: p.unit(x) if x.sum() > 0 else p.unit(-x)],
    "a list": [lambda p, x: [x, p.unit(x)], second_of_list],
    "a number beside": [lambda p, x: (2, p.unit(x)), lambda p, n, x: p.unit(x) * n],
    "its own counter": [count],
    "its own memory": [remember],
    "gradients off": [without_gradients],
    "autocast off": [without_autocast],
    "a write that is read": [lambda p, x: (lambda y: (y.add_(1), y)[1])(p.unit[0](p.unit(x)))],
    "Python's random numbers": [lambda p, x: p.unit(x) * (1 + random.randrange(1))],
    "NumPy's random numbers": [lambda p, x: p.unit(x) * float(1 + 0 * np.random.random())],
    "several tensors": [lambda p, x: p.unit(x).chunk(3, 1)[1].expand(-1, 3, -1, -1)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_runs_as_it_is(small, images, equal, both, given, name: str) -> None:
    stages = [given(make) for make in REFUSED[name]]
    exits = [nn.Sequential(given(second_of_list), nn.Flatten(), nn.Linear(108, 2)) for _ in stages]
    form, twin = both(small(*stages, exits=exits))
    equal(form, images(), twin)
    assert set(form.why_not) & {"stages.0", "network"}


def view(part: nn.Module, x: Tensor) -> Tensor:
    return x.view(x.size(0), -1)


@pytest.mark.parametrize("make", [view, lambda p, x: view(p, p.unit(x)), lambda p, x: view(p, p.unit(x)).view_as(x)])
def test_views_of_maps_work_as_in_the_module(unit, small, images, equal, both, given, make: Callable[..., Any]) -> None:
    exits = [nn.Sequential(given(make), nn.Flatten(), nn.Linear(108, 2))]
    form, twin = both(small(unit(3, 3), exits=exits))
    equal(form, images(), twin)
