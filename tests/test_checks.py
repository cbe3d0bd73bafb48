from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from offramp.checks import (
    SIZE,
    check_counts,
    check_fields,
    check_flags,
    check_name,
    check_number,
    check_size,
    check_whole,
    did_you_mean,
    whole,
)
from offramp.errors import UsageError

NOT_WHOLE, NOT_A_NUMBER = [1.0, True, "2", None, [1]], [True, "0.5", None, 1j, float("nan"), float("inf")]


def positive(value: Any) -> None:
    check_number("rate", value, "above 0", lambda value: value > 0)


@pytest.mark.parametrize(
    ("check", "good", "bad", "said"),
    [
        (lambda value: check_whole("a", value, 0), [0, 7], [-1, *NOT_WHOLE], "a must be a whole number of at least 0"),
        (lambda value: check_counts(a=1, b=value), [1, 7], [0, *NOT_WHOLE], "b must be a whole number of at least 1"),
        (positive, [1, 0.5, 1e300], [0, -1.0, *NOT_A_NUMBER], "rate must be a number above 0"),
        (lambda value: check_size("lr", value), [0, 0.5], [-1e-9, *NOT_A_NUMBER], "lr must be a number of at least 0"),
        (lambda value: check_flags(a=True, b=value), [True, False], [1, "no", None], "b must be true or false"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_value(
    check: Callable[[Any], None], good: list[Any], bad: list[Any], said: str
) -> None:
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(UsageError) as error:
            check(value)
        assert str(error.value) == f"{said}, not {value!r}."


def test_a_word_that_is_unknown_is_answered_with_those_that_are_known() -> None:
    check_name("form", "damping", ["damping", "dynamic"])
    with pytest.raises(UsageError, match=r"form 'dampng' is unknown\. Did you mean damping\? Known: damping, d"):
        check_name("form", "dampng", ["damping", "dynamic"])


def test_did_you_mean_names_the_near_ones_then_all() -> None:
    assert did_you_mean("dampng", ["damping", "dynamic"]) == " Did you mean damping? Known: damping, dynamic."
    assert did_you_mean("xyz", ["damping", "dynamic"]) == " Known: damping, dynamic."


@dataclass(frozen=True)
class Settings:
    layers: Annotated[int | None, whole(1, 9)] = 3
    strength: Annotated[float | tuple[float, ...], SIZE] = 0.5
    over: Literal["exits", "batch"] | None = "exits"
    reverse: bool = False


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layers": 10}, "layers must be a whole number of at most 9, not 10"),
        ({"layers": []}, "layers must be a whole number of at least 1, not []"),
        ({"layers": (1, 2)}, "layers must be a whole number of at least 1, not (1, 2)"),
        ({"strength": (0.1, -1.0)}, "strength must be a number of at least 0, not -1.0"),
        ({"strength": None}, "strength must be a number of at least 0, not None"),
        ({"over": "exit"}, "over 'exit' is unknown. Did you mean exits?"),
        ({"reverse": "no"}, "reverse must be true or false, not 'no'"),
    ],
    ids=str,
)
def test_fields_are_what_their_annotations_say(values: dict[str, Any], said: str) -> None:
    check_fields(Settings(layers=None, strength=(0.0, 1), over=None, reverse=True))
    with pytest.raises(UsageError) as error:
        check_fields(Settings(**values))
    assert str(error.value).startswith(said)
