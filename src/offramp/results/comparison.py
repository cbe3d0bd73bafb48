"""Runs side by side: seeds grouped, with their spread, and paired differences.

K exits, n runs of a group. The paper's "±" is very probably a half-range, (max - min) / 2, so both it and the standard
deviation are given.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.config import determining
from offramp.errors import UsageError
from offramp.evaluation.spread import Spread
from offramp.files.evaluation import EvaluationFile
from offramp.results.labels import differences, labels, short_name

_FIRST = ("objective", "network", "rule", "training", "data")  # the order of what is said of a group
METRICS = ("top1", "nll", "ece", "damping")


@dataclass(frozen=True)
class Measured:
    """A run and its figures: what its `config.json` and `evaluation.json` hold."""

    path: Path
    config: Mapping[str, Any]
    figures: EvaluationFile

    @property
    def seed(self) -> Any:
        """The seed it was trained with."""
        return (self.config.get("training") or {}).get("seed")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        label: What sets the group apart from the others, in few words.
        differs: The same in full: fields of the configuration in which the groups differ, with this group's values.
        runs: In the order of their seeds.
    """

    label: str
    differs: Mapping[str, Any]
    runs: tuple[Measured, ...]

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.runs[0].figures.exits)

    @property
    def operations(self) -> list[int]:
        """Of each exit, cumulative."""
        return [exit.operations for exit in self.runs[0].figures.exits]

    def exit(self, k: int, metric: str) -> Spread | None:
        """The spread of a figure of exit k (from 0); None where the exit has none, such as damping."""
        values = [getattr(run.figures.exits[k], metric) for run in self.runs]
        return None if any(value is None for value in values) else Spread.of(values)

    @property
    def mean_top1(self) -> Spread:
        """The spread of the mean accuracy over exits."""
        return Spread.of([run.figures.mean_top1 for run in self.runs])


@dataclass(frozen=True)
class Paired:
    """What a group has over the first one, seed by seed, in points of top-1: of the mean over exits, and of each."""

    seeds: tuple[Any, ...]
    mean_top1: Spread
    exits: tuple[Spread, ...]


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order in which they were named; and the files that were asked for."""

    groups: tuple[Group, ...]
    written: tuple[Path, ...] = ()

    def against_first(self, group: Group) -> Paired | None:
        """What `group` has over the first one; None without a common seed, or with other exits or another test set."""
        first = self.groups[0]
        ours, theirs = ({run.seed: run.figures for run in g.runs} for g in (group, first))
        seeds = tuple(seed for seed in ours if seed in theirs)
        same_test = first.runs[0].figures.fingerprint == group.runs[0].figures.fingerprint
        if group is first or not seeds or not same_test or group.num_exits != first.num_exits:
            return None
        return Paired(
            seeds,
            Spread.of([ours[seed].mean_top1 - theirs[seed].mean_top1 for seed in seeds]),
            tuple(
                Spread.of([ours[seed].exits[k].top1 - theirs[seed].exits[k].top1 for seed in seeds])
                for k in range(group.num_exits)
            ),
        )

    @property
    def data_names(self) -> tuple[str, ...]:
        """The data sets, each once."""
        return tuple(dict.fromkeys(group.runs[0].figures.data for group in self.groups))

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        return {"groups": [self._group_json(group) for group in self.groups]}

    def _group_json(self, group: Group) -> dict[str, Any]:
        paired = self.against_first(group)
        return {
            "label": group.label,
            "differs": dict(group.differs),
            "data": group.runs[0].figures.data,
            "runs": [str(run.path) for run in group.runs],
            "seeds": [run.seed for run in group.runs],
            "n": len(group.runs),
            "mean_top1": _json(group.mean_top1),
            "exits": [
                {"operations": operations, **{metric: _json(group.exit(k, metric)) for metric in METRICS}}
                for k, operations in enumerate(group.operations)
            ],
            "against_first": None
            if paired is None
            else {
                "seeds": list(paired.seeds),
                "mean_top1": _json(paired.mean_top1),
                "exits": [_json(spread) for spread in paired.exits],
            },
        }


def _json(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else vars(spread)


def grouped(runs: Sequence[Measured]) -> tuple[Group, ...]:
    """Runs that differ in their seed only, together.

    Raises:
        UsageError: One run twice.
    """
    keys = {run.path: json.dumps(_recipe(run), sort_keys=True) for run in runs}
    recipes = {keys[run.path]: _recipe(run) for run in runs}
    differing = differences(recipes)
    label_of = labels(list(recipes), differing)
    if "objective.name" not in dict(differing):  # said even where it is common to all
        label_of = {key: f"{short_name(recipes[key]['objective'])} {label}".strip() for key, label in label_of.items()}
    groups = []
    for key in recipes:
        same = [run for run in runs if keys[run.path] == key]
        _refuse_equal_seeds(same)
        groups.append(
            Group(
                label=label_of[key],
                differs={field: values[key] for field, values in differing if key in values},
                runs=tuple(sorted(same, key=lambda run: (run.seed is None, run.seed))),
            )
        )
    return tuple(groups)


def _recipe(run: Measured) -> dict[str, Any]:
    """What determines a run but for its seed, and the test set it was measured on."""
    settings = determining(run.config)
    if settings["training"] is not None:
        settings["training"].pop("seed", None)
    recipe = {name: settings.get(name) for name in (*_FIRST, *settings)}
    return {**recipe, "images": {**(recipe.get("images") or {}), "test": run.figures.fingerprint}}


def _refuse_equal_seeds(runs: Sequence[Measured]) -> None:
    first: dict[Any, Measured] = {}
    for run in runs:
        if run.seed in first:
            raise UsageError(
                f"{first[run.seed].path} and {run.path} are the same run twice: configuration and seed ({run.seed}) "
                "are equal. Name one of them."
            )
        first[run.seed] = run
