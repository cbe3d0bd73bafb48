"""Made-up manifests: what finished runs would leave, without training any."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from offramp.config import Run
from offramp.json_files import convert
from offramp.paper.identity import command, configuration, run_hash, run_name
from offramp.paper.manifest import Manifest, ManifestFile
from offramp.paper.study import Study, distinct


@pytest.fixture
def tiny(tiny_scale):
    """The scale of `tiny.py`."""
    return tiny_scale


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    """`manifest(run, top1, ...)`: of a run that gave these accuracies."""

    def make(
        run: Run,
        top1: Sequence[float],
        *,
        damping: Sequence[float] | None = None,
        best: Sequence[float] | None = None,
        budgeted: Sequence[Sequence[float]] | None = None,
        seconds: float = 60.0,
        nll: float = 0.5,
        starts: Sequence[dict[str, Any]] = (),
        load: float | None = 1.0,
        last_stats: dict[str, list[float] | None] | None = None,
        search: Sequence[float] | None = None,
        xray: dict[str, list[float]] | None = None,
        ece: float = 0.1,
        certified: dict[str, Any] | None = None,
        **made_by: Any,
    ) -> Manifest:
        exits = [
            {
                "operations": 100 * (k + 1),
                "parameters": 10 * (k + 1),
                "top1": value,
                "nll": 1.0,
                "ece": ece,
                "damping": None if damping is None else damping[k],
                "train": {
                    "top1": 100.0,
                    "nll": nll,
                    "ece": 0.1,
                    "damping": None if damping is None else damping[k] / 2,
                },
            }
            for k, value in enumerate(top1)
        ]
        by = {"offramp": "0", "torch": "2", "python": "3", "device": "cpu", "threads": 1, "git": None, **made_by}
        values: dict[str, Any] = {
            "format": 1,
            "name": run_name(run),
            "hash": run_hash(run),
            "run": configuration(run),
            "command": command(run, "x"),
            "data": "digits",
            "images": {"train": "a" * 64, "search": None, "test": "b" * 64},
            "weights": "c" * 64,
            "made_by": by,
            "timing": {"seconds": seconds, "milliseconds_per_image": 1.0, "jobs": 1},
            "mean_top1": sum(top1) / len(top1),
            "exits": exits,
            "last_epoch": {"epoch": 1, "loss": 1.0},
            "best_epoch": None if best is None else {"epoch": 7, "top1": list(best)},
            "budgeted": budgeted,
        }
        if search is not None:
            values["search_top1"] = list(search)
        if certified is not None:
            values["certified"] = certified
        if xray is not None:
            values["xray"] = xray
        if load is not None:
            values["load"] = {"start": 0.2, "end": load, "own": 1}
        if last_stats is not None:
            values["last_stats"] = last_stats
        if starts:
            values["starts"] = starts
        return Manifest(convert(values, ManifestFile, "made up"), Path("m.json"))

    return make


@pytest.fixture
def study(tmp_path, manifest):
    """`study(scale, names, seeds=2)`: its manifests are there, its page is not yet."""

    def make(scale, *names, seeds=2, **more):
        made = Study(names=names, scale=scale, seeds=tuple(range(seeds)), out=tmp_path / "study", **more)
        for number, row in enumerate(distinct(made.experiments)):
            exits = (
                1 if row.run.network.args.get("last_only") or "-last-" in row.run.network.name else row.setting.exits
            )
            for seed in range(seeds):
                run = row.with_seed(seed)
                one = manifest(
                    run,
                    [70.0 + number / 10 + seed / 100 + k for k in range(exits)],
                    damping=[0.01 * (k + 1) for k in range(exits)],
                    best=[77.77] * exits,
                    budgeted=[[100, 70.0 + number], [100 * exits, 75.0 + number]],
                    seconds=60.0 * (number + 1),
                )
                one.save(made.out / "manifests" / f"{run_name(run)}.json")
        return made

    return make
