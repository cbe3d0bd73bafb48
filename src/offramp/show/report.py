"""The page and the plots of one run."""

import dataclasses
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import offramp
from offramp.choices import Plots
from offramp.config import Spec
from offramp.evaluation.bounds import Z95
from offramp.results.dynamic import Picked
from offramp.results.evaluation import Evaluation
from offramp.results.labels import short_name, summary
from offramp.results.outcome import outcome
from offramp.show import figures
from offramp.show.bench.plots import times
from offramp.show.dynamic import CLASSES_SHOWN, plot, section
from offramp.show.page import Sheet, inline_svg, page
from offramp.terminal import with_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report_files(
    evaluation: Evaluation, pictures: Callable[[Sequence[Sequence[Picked]]], Sheet], *, page: bool, plots: Plots | None
) -> dict[Path, bytes]:
    """The page of a run, where matplotlib is installed, and its plots as files of a kind; `pictures` reads images."""
    folder, files = evaluation.run, {}
    page = page and figures.available()
    if page or plots is not None:
        with figures.style():
            drawn = draw(evaluation)
            if page:
                images = None if evaluation.dynamic is None else pictures(evaluation.dynamic.picked)
                files[folder.report] = report(evaluation, drawn, images).encode()
            if plots is not None:
                for name, figure in drawn.items():
                    files[folder.plots / f"{name}.{plots}"] = figures.render(figure, plots, name)
    return files


def draw(evaluation: Evaluation) -> "dict[str, Figure]":
    """The plots of a run by name; to be called, and rendered, inside `figures.style()`."""
    test = evaluation.test
    top1 = [exit.top1 for exit in test.exits]
    operations = [count.operations for count in evaluation.cost.exits]
    curve = figures.PlotCurve("test", operations, top1, [_wilson(value, test.num_images) for value in top1])
    drawn = {"accuracy": figures.accuracy([curve])}
    if evaluation.dynamic is not None:
        drawn["dynamic"] = plot(evaluation.dynamic, dataclasses.replace(curve, label="one exit for all images"))
    if evaluation.bench is not None:
        drawn["time"] = times(evaluation.bench)
    if evaluation.metrics:
        drawn["training"] = figures.training(evaluation)
    drawn["reliability"] = figures.reliability([exit.reliability for exit in test.exits])
    if test.exits[0].damping is not None:
        drawn["damping"] = figures.damping(test)
    return drawn


def report(evaluation: Evaluation, drawn: "dict[str, Figure]", images: Sheet | None = None) -> str:
    """The page of a run: one file, the same for the same run. `images` are those that its dynamic part picks."""
    config = evaluation.config
    objective = config.objective.to_json()
    return page(
        "run.html.j2",
        title=" · ".join(
            [
                short_name(objective),
                "a network of your own" if config.network is None else short_name(config.network.to_json()),
                evaluation.data_name,
            ]
        ),
        outcome=outcome(evaluation),
        objective=summary(objective),
        evaluation=evaluation,
        test=evaluation.test,
        train=evaluation.train,
        cost=evaluation.cost,
        plots={name: inline_svg(figure, name) for name, figure in drawn.items()},
        with_error=with_error,
        classes=_classes(evaluation),
        dynamic=evaluation.dynamic,
        **({} if evaluation.dynamic is None else section(evaluation.dynamic, images)),
        facts=_facts(evaluation),
    )


def _wilson(top1: float, num_images: int) -> tuple[float, float]:
    """How far the 95 % interval of a percentage reaches down and up (Wilson's, which stays inside 0 and 100)."""
    share, z2 = top1 / 100, Z95**2
    centre = (share + z2 / (2 * num_images)) / (1 + z2 / num_images)
    half = Z95 / (1 + z2 / num_images) * sqrt(share * (1 - share) / num_images + z2 / (4 * num_images**2))
    # At 0 and 100 % one end is the percentage itself, up to rounding.
    return max(0.0, 100 * (share - centre + half)), max(0.0, 100 * (centre + half - share))


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The classes with images, by what the last exit gains over the first, largest first."""
    test = evaluation.test
    rows = [
        {"name": name, "images": images, "top1": top1, "gain": top1[-1] - top1[0]}
        for name, images, *top1 in zip(
            test.class_names, test.class_images, *(exit.class_top1 for exit in test.exits), strict=True
        )
        if images
    ]
    return sorted(rows, key=lambda row: -row["gain"])[:CLASSES_SHOWN]


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What a reader needs to make the run again, as far as the run's folder says it."""
    config = evaluation.config
    facts = [
        ("data", evaluation.data_name if config.data is None else _settings(config.values["data"])),
        ("network", "built by hand" if config.network is None else str(config.network)),
        ("objective", str(config.objective)),
        ("rule", "" if config.rule is None else str(config.rule)),
        ("training", _settings(config.values["training"])),
        ("seed", str(config.training.seed)),
    ]
    if evaluation.starts:
        last = evaluation.starts[-1]
        versions = {"offramp": last.offramp, "torch": last.torch, "python": last.python}
        facts += [
            ("trained on", last.device or ""),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
            ("git", "" if last.git is None else last.git.commit + (" (changed)" if last.git.changed else "")),
            ("command", last.command or ""),
        ]
    facts += [
        ("evaluated by", f"offramp {offramp.__version__}, {evaluation.made_on}"),
        ("weights", f"{evaluation.weights[:16]}…"),
    ]
    return [(name, value) for name, value in facts if value]


def _settings(config: dict[str, Any]) -> str:
    shown = {key: Spec.from_json(value) if key == "source" else value for key, value in config.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if value is not None)
