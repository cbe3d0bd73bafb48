"""Settings that cannot be: one line that names the setting, what it is, and the way out where there is one."""

import math
from typing import Any

import pytest

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.objectives import OBJECTIVES, build

STRENGTHS = (-0.1, math.inf, math.nan, "strong", None)
WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"strength": value}, "strength") for name in ("damping", "power-sqrt", "dynamic") for value in STRENGTHS),
    ("damping", {"strength": [0.1, "x"]}, "strength"),
    ("damping", {"per_sqrt_exits": "maybe"}, "per_sqrt_exits"),
    ("damping", {"weighting": {"applied_to": "root"}}, "no root"),
    ("power-sqrt", {"strength": [0.1, 0.2]}, "one strength for all exits"),
    ("power-sqrt", {"root": "samples"}, "Did you mean sample"),
    ("power-sqrt", {"weighting": "dynamic"}, "the objective dynamic"),
    ("power-sqrt", {"weighting": {"alhpa": 0.3}}, "Did you mean alpha"),
    *(("dynamic", {"alpha": value}, "alpha") for value in (1.1, -0.1, math.nan)),
    ("dynamic", {"form": "powersqrt"}, "Did you mean power-sqrt"),
    ("dynamic", {"normalisation": "minmax"}, "Did you mean min-max"),
    ("dynamic", {"over": "batches"}, "Did you mean batch"),
    ("dynamic", {"applied_to": "gradients"}, "Did you mean gradient"),
    ("dynamic", {"reverse": "no"}, "reverse"),
    ("dynamic", {"with_gradient": 1}, "with_gradient"),
    *(("label-smoothing", {"smoothing": value}, "smoothing") for value in (-0.1, 1.0, "much")),
    *(("discard-threshold", {"threshold": value}, "threshold") for value in (-0.1, 1.1, "high")),
    ("discard-threshold", {"mean": "all"}, "mean"),
    *((name, {"strenght": 1}, "strenght") for name in OBJECTIVES),
    ("power-sqr", {}, "Did you mean power-sqrt"),
]


@pytest.mark.parametrize(("name", "settings", "says"), WRONG)
def test_what_cannot_be_is_said(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Spec(name, settings))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
