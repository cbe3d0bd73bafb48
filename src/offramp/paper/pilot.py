"""Which methods our own study compares, and how its pilot decides on the number of each: by one rule for all.

The pilot trains every candidate of every method. Of each method that candidate is chosen which is best on `search`, in
top-1 averaged over exits, over seeds and at the last epoch; of equals the first. The study trains the chosen ones with
other seeds and reports on test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from offramp.errors import OfframpError, UsageError
from offramp.json_files import read, write
from offramp.paper import methods
from offramp.paper.manifest import Manifest
from offramp.paper.methods import Chooser, Method, fitted, plainly
from offramp.paper.scales import Scale

STRENGTHS = (0.005, 0.025, 0.075)


def _strengths(family: str, name: str, **more: Any) -> tuple[Method, ...]:
    return tuple(Method(f"{family} {s}", fitted(name, strength=s, **more)) for s in STRENGTHS)


def _values(family: str, argument: str, values: Sequence[float]) -> tuple[Method, ...]:
    choosers: list[Chooser] = [plainly(family.replace(" ", "-"), **{argument: value}) for value in values]
    return tuple(Method(f"{family} {value}", chooser) for value, chooser in zip(values, choosers, strict=True))


CANDIDATES: Mapping[str, tuple[Method, ...]] = {
    "cross-entropy": (methods.CROSS_ENTROPY,),
    "damping": _strengths("damping", "damping"),
    "damping, λ/√K": _strengths("damping, λ/√K", "damping", per_sqrt_exits=True),
    "power-sqrt": _strengths("power-sqrt", "power-sqrt"),
    "dynamic (R1)": _strengths("dynamic (R1)", "dynamic"),
    "dynamic, tanh (R3)": _strengths("dynamic, tanh (R3)", "dynamic", normalisation="tanh"),
    "discard threshold": _values("discard threshold", "threshold", (0.8, 0.9, 0.95)),
    "label smoothing": _values("label smoothing", "smoothing", (0.05, 0.1, 0.2)),
    "best rival": (
        *(methods.WPN, methods.WPN_OWN, methods.WPN_LARGER, methods.DFS, methods.DFS_OWN),
        *(methods.GRADIENT_EQUILIBRIUM, methods.CGT),
    ),
}
"""By method; the best rival is chosen among rivals as they are and with their own recipes, by the same rule."""


def _file_name(scale: str) -> str:
    return f"pilot-{scale}.json"


def decide(manifests: Mapping[str, Sequence[Manifest]], scale: str, seeds: Sequence[int]) -> dict[str, Any]:
    """What the finished pilot says, as JSON values.

    Args:
        manifests: Of each candidate by its label, one a seed.
    """
    search = {
        family: {each.label: fmean(_on_search(manifest) for manifest in manifests[each.label]) for each in candidates}
        for family, candidates in CANDIDATES.items()
    }
    chosen = {family: ranked(by_label)[0] for family, by_label in search.items()}
    return {"scale": scale, "seeds": list(seeds), "search_top1": search, "chosen": chosen}


def ranked(search_top1: Mapping[str, float]) -> list[str]:
    """The rule: labels of candidates, the best on `search` first; of equals the one that is listed first."""
    return sorted(search_top1, key=search_top1.__getitem__, reverse=True)


def _on_search(manifest: Manifest) -> float:
    exits = manifest.file.search_top1
    if exits is None:
        raise OfframpError(f"The manifest {manifest.path} says nothing of `search`. Move it away to run it again.")
    return fmean(exits)


@dataclass(frozen=True)
class _Decision:
    """What is read of a pilot's file: the label chosen, by method."""

    chosen: Mapping[str, str]


def save(decision: Mapping[str, Any], folder: Path) -> Path:
    """Write what is decided; what was decided before stands."""
    path = folder / _file_name(decision["scale"])
    if not path.exists():
        write(path, decision)
    return path


def chosen(scale: Scale, folders: Sequence[Path]) -> dict[str, str]:
    """The label of the candidate of each method that the pilot of a scale, or of the one it goes by, decided on.

    It is looked for in these folders and below, as manifests are.

    Raises:
        UsageError: It is not done.
        OfframpError: Its file is damaged.
    """
    names = [_file_name(name) for name in (scale.name, scale.pilot)]
    path = next((path for name in names for folder in folders for path in sorted(folder.rglob(name))), None)
    if path is None:
        raise UsageError(
            f"The study at the scale {scale.name} needs a pilot, which decides on each method's number: run "
            f"`offramp reproduce pilot --scale {scale.pilot or scale.name} --first-seed 100 --seeds 2` first, into the "
            "same folder."
        )
    decision = read(path, _Decision, hint="Delete it and run the pilot again.")
    if missing := sorted(CANDIDATES.keys() - decision.chosen.keys()):
        raise OfframpError(f"{path} is damaged: it chooses nothing of {missing[0]}. Delete it and run the pilot again.")
    for family, label in decision.chosen.items():
        if label not in (each.label for each in CANDIDATES.get(family, ())):
            raise OfframpError(f"{path} chooses {label!r}, which is no candidate of {family!r}. Run the pilot again.")
    return dict(decision.chosen)
