"""What sets recipes apart: in which fields of the configuration they differ, and a short label for each.

A recipe is a run's configuration without its seed. Arguments are compared only between recipes of the same name: that
power-sqrt has a strength and cross-entropy none is said by their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.registry import called

Difference = tuple[str, Mapping[str, Any]]  # dotted field, and the values of the recipes that have it


def _follows(field: str) -> bool:
    """Hashes of images follow from the data's configuration, the damping neuron from the objective, as a rule."""
    return field.startswith("images") or (field.startswith("network.") and field.endswith(".damping"))


def differences(recipes: Mapping[str, Any], field: str = "") -> list[Difference]:
    """The fields in which recipes (by key, as JSON values) differ, in the order of the configuration."""
    first, *rest = recipes.values()
    if all(value == first for value in rest):
        return []
    if not all(isinstance(value, Mapping) for value in recipes.values()):
        return [(field, recipes)]
    if all(_is_spec(value) for value in recipes.values()):
        return _spec_differences(recipes, field)
    names = list(dict.fromkeys(name for value in recipes.values() for name in value))
    return [
        difference
        for name in names
        for difference in differences(
            {key: value.get(name) for key, value in recipes.items()}, f"{field}.{name}" if field else name
        )
    ]


def labels(keys: Sequence[str], differing: Sequence[Difference]) -> dict[str, str]:
    """A label for each recipe: its values where recipes differ; what follows from others where nothing else tells."""
    shown = [difference for difference in differing if not _follows(difference[0])]
    labels = {key: _label(key, shown) for key in keys}
    if len(set(labels.values())) < len(keys):
        labels = {key: _label(key, differing) for key in keys}
    return labels


def short_name(spec: Mapping[str, Any]) -> str:
    """`power-sqrt` for a spec whose name is `offramp.objectives.power_sqrt:PowerSqrt`; `small` for `mine:small`."""
    return _short(called(spec))


def summary(spec: Mapping[str, Any]) -> str:
    """`dynamic strength=0.005 weighting={alpha=0.8, …}`: a spec's short name and its arguments in brief."""
    return " ".join([short_name(spec), *(f"{key}={_brief(value)}" for key, value in spec["args"].items())])


def _is_spec(value: Mapping[str, Any]) -> bool:
    return value.keys() == {"name", "args"}


def _short(name: str) -> str:
    return name.rpartition(":")[2]


def _spec_differences(specs: Mapping[str, Any], field: str) -> list[Difference]:
    names = {key: called(spec) for key, spec in specs.items()}
    different: list[Difference] = [(f"{field}.name", names)] if len(set(names.values())) > 1 else []
    for name in dict.fromkeys(names.values()):
        same = {key: spec["args"] for key, spec in specs.items() if names[key] == name}
        different += differences(same, f"{field}.{_short(name)}")
    return different


def _label(key: str, differing: Sequence[Difference]) -> str:
    """Values may be names of files, which need not be UTF-8: what cannot be written is a question mark."""
    label = " ".join(_piece(field, values, key) for field, values in differing if key in values)
    return label.encode(errors="replace").decode()


def _piece(field: str, values: Mapping[str, Any], key: str) -> str:
    value = values[key]
    if field.endswith(".name"):  # of an objective, a network, a rule, a data set
        known = set(values.values())
        return _short(str(value)) if len(known) == len({_short(name) for name in known}) else str(value)
    return f"{field.rpartition('.')[2]}={_brief(value)}"


def _brief(value: Any) -> str:
    if isinstance(value, Mapping) and _is_spec(value):
        return short_name(value)
    if isinstance(value, Mapping) and value:
        name, first = next(iter(value.items()))
        return f"{{{name}={_brief(first)}{', …' if len(value) > 1 else ''}}}"
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"
