"""Figures of a run by keyword: `figures_of((70.0,), train_nll=(0.5,), seconds=9.0)`."""

from collections.abc import Sequence
from typing import Any

from offramp.paper.results import Clock, Figures


def figures_of(
    top1: Sequence[float],
    *,
    seconds: float | None = None,
    clock: Clock | None = None,
    images: int | None = None,
    **more: Any,
) -> Figures:
    numbers = {"top1": tuple(top1), "seconds": None if seconds is None else (seconds,), **more}
    named = {name.replace("_", "-"): values for name, values in numbers.items() if values}
    return Figures(named, clock=clock, images=images)  # type: ignore[arg-type]
