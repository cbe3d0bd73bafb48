"""Objectives by name, one's own by path, and the description that a run records."""

import json
import sys
from pathlib import Path

import pytest
import torch

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.objectives import (
    OBJECTIVES,
    CrossEntropy,
    Damping,
    DiscardThreshold,
    DynamicWeights,
    LabelSmoothing,
    Objective,
    PowerSqrt,
    build,
    describe,
    dynamic,
)

OWN = """
from dataclasses import dataclass
from offramp.objectives import CrossEntropy, Objective, Terms

@dataclass(frozen=True)
class Doubled(Objective):
    factor: float = 2.0

    def terms(self, logits_KBC, targets_B, *, progress=0.0):
        plain = CrossEntropy().terms(logits_KBC, targets_B)
        return Terms(self.factor * plain.loss_KB, plain.stats_KB)

class ByHand(Objective):
    def __init__(self, factor):
        self.factor, self.names, self.network, self._cache = factor, ("a", "b"), object(), 3

    terms = Doubled.terms

class Unfinished(Objective):
    pass

def doubled(times: int = 1):
    return Doubled(2.0 ** times)

def nothing():
    return None

THREE = 3
READY = Doubled()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's on the Python path."""
    (tmp_path / "own_objectives.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_objectives", raising=False)
    return "own_objectives"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cross-entropy"], CrossEntropy()),
        (["label-smoothing", "smoothing=0.2"], LabelSmoothing(0.2)),
        (["discard-threshold", "threshold=0.7"], DiscardThreshold(0.7)),
        (["damping", "strength=0.1,0.2"], Damping((0.1, 0.2))),
        (["damping", "strength=[0.1,0.2]", "per_sqrt_exits=true"], Damping((0.1, 0.2), per_sqrt_exits=True)),
        (["power-sqrt", "root=batch"], PowerSqrt(root="batch")),
        (["power-sqrt", "weighting={'alpha':0.3}"], PowerSqrt(weighting=DynamicWeights(alpha=0.3))),
        (["dynamic"], PowerSqrt(0.005, weighting=DynamicWeights(alpha=0.8))),
        (["dynamic", "form=damping", "normalisation=tanh"], dynamic("damping", normalisation="tanh")),
    ],
)
def test_a_registered_name_with_arguments_builds_the_objective(words: list[str], expected: Objective):
    assert build(Spec.parse(words)) == expected


def test_ones_own_class_and_function_are_built_by_path(own: str):
    logits_KBC, targets_B = torch.randn(2, 3, 4), torch.tensor([0, 1, 2])
    plain = CrossEntropy()(logits_KBC, targets_B)
    torch.testing.assert_close(build(Spec(f"{own}:Doubled"))(logits_KBC, targets_B), 2 * plain)
    torch.testing.assert_close(build(Spec(f"{own}:doubled", {"times": 3}))(logits_KBC, targets_B), 8 * plain)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_objectives:nothing", "gives a NoneType, not an offramp.objectives.base.Objective"),
        ("own_objectives:THREE", "is of type int; name a class or a function"),
        ("own_objectives:READY", "missing a required argument"),
        ("own_objectives:Unfinished", "is abstract: it lacks terms"),
        ("own_objectives:Absent", "has no 'Absent'"),
        ("no_such_module:Doubled", "no module 'no_such_module'"),
        ("builtins:dict", "is of type type; name a class or a function"),
        ("collections:OrderedDict", "objective 'collections:OrderedDict'"),
    ],
)
@pytest.mark.usefixtures("own")
def test_anything_else_is_refused(name: str, message: str):
    with pytest.raises(UsageError, match=message):
        build(Spec(name))


@pytest.mark.parametrize(
    "objective",
    [
        *(factory() for factory in OBJECTIVES.values()),
        Damping((0.1, 0.2), per_sqrt_exits=True),
        PowerSqrt(0.1, weighting=DynamicWeights(alpha=0.3, normalisation="tanh"), root="batch"),
    ],
    ids=str,
)
def test_a_description_survives_json_and_builds_the_same_objective(objective: Objective):
    description = describe(objective)
    assert json.loads(json.dumps(description)) == description
    assert build(Spec.from_json(description)) == objective


def test_equal_objectives_have_equal_descriptions_however_they_were_made():
    assert describe(PowerSqrt(weighting=DynamicWeights())) == describe(dynamic())
    assert describe(dynamic()) != describe(dynamic(alpha=0.7))
    assert describe(Damping([0.1, 0.2])) == describe(Damping((0.1, 0.2)))


def test_of_a_class_that_is_no_dataclass_the_public_attributes_that_json_can_hold(own: str):
    objective = build(Spec(f"{own}:ByHand", {"factor": 1.5}))
    assert describe(objective) == {"name": f"{own}:ByHand", "args": {"factor": 1.5, "names": ["a", "b"]}}
