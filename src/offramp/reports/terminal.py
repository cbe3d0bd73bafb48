"""Tables and progress for the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from offramp.evaluation.xray import NEEDED, STATES
from offramp.reports.dynamic import MAX_DROP, leaves_from
from offramp.reports.evaluation import Evaluation
from offramp.reports.figures import short
from offramp.reports.loading import Progress as PassProgress
from offramp.reports.policy import PolicyUse
from offramp.reports.report import with_error
from offramp.reports.xray import XrayReport
from offramp.terminal import Screen


def console() -> Screen:
    """Standard output; wide enough for a table where it is no terminal."""
    plain = Screen(highlight=False)
    return plain if plain.is_terminal else Screen(highlight=False, width=max(plain.width, 120))


@contextmanager
def passes() -> Iterator[PassProgress]:
    """A bar per data set on standard error, while it is read; nothing where that is no terminal."""
    on_stderr = Screen(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=on_stderr, transient=True, disable=not on_stderr.is_terminal) as bars:
        tasks = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show


@contextmanager
def countdown() -> Iterator[Callable[[float], None]]:
    """A bar with the time left on standard error; drawn only when a share is handed in, for a thread would be timed."""
    on_stderr = Screen(stderr=True)
    columns = TextColumn("timing"), BarColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=on_stderr, transient=True, auto_refresh=False, disable=not on_stderr.is_terminal
    ) as bar:
        task = bar.add_task("timing", total=1.0)

        def show(share: float) -> None:
            bar.update(task, completed=share)
            bar.refresh()

        yield show


def run_table(evaluation: Evaluation) -> RenderableType:
    """Every exit of a run: cost, accuracy, likelihood, calibration, damping."""
    test, train = evaluation.test, evaluation.train
    top5, damped = test.exits[0].top5 is not None, test.exits[0].damping is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = ["exit", "operations", "parameters", "top-1 %", *(["top-5 %"] if top5 else []), "NLL", "ECE"]
    if damped:
        names += ["F[N+1] test", *(["F[N+1] train"] if train else [])]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for k, (exit, count) in enumerate(zip(test.exits, evaluation.cost.exits, strict=True)):
        row = [
            str(k + 1),
            short(count.operations),
            short(count.parameters),
            with_error(exit.top1, exit.top1_se, test.num_images),
        ]
        row += [f"{exit.top5:.2f}"] if exit.top5 is not None else []
        row += [f"{exit.nll:.4f}", f"{exit.ece:.4f}"]
        for part in (test, train):
            damping = part.exits[k].damping if part is not None else None
            row += [f"{damping.mean:#.2g}"] if damping is not None else []
        table.add_row(*row)
    table.add_section()
    table.add_row("mean", "", "", with_error(test.mean_top1, test.mean_top1_se, test.num_images))
    lines = [
        f"{evaluation.data_name}: {test.num_images} images of {test.split}",
        "±: standard error over the images, at least 100 / (images + 1); it says nothing of other seeds",
    ]
    if train is not None and damped:
        lines.append(f"F[N+1] train: mean over {train.num_images} training images with test transforms")
    lines += _dynamic_lines(evaluation)
    return Group(table, *map(Text, lines))  # no markup: a path may have brackets


def _dynamic_lines(evaluation: Evaluation) -> list[str]:
    """What the policy does on the test set, in a line, or why nothing is said of it."""
    found = evaluation.dynamic
    if found is None:
        return [] if len(evaluation.test.exits) == 1 else [f"No dynamic inference: {evaluation.no_dynamic}"]
    policy = found.source or f"thresholds found for a drop of {MAX_DROP:g} points"
    line = f"{policy}: {found.point.accuracy:.1f} % at {100 * found.share:.0f} % of the operations"
    return [line, *([found.note] if found.note else [])]


def exit_table(use: PolicyUse, remark: str) -> RenderableType:
    """A row an exit and one for all images, `remark` on what the figures are worth, and what an image costs."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("exit", "leaves from", "images", "top-1 %", "last exit on them %"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, exit in enumerate(use.exits, 1):
        accuracies = ("-" if value is None else f"{value:.2f}" for value in (exit.top1, exit.full_top1))
        table.add_row(str(k), leaves_from(exit.threshold), f"{exit.share:.1%}", *accuracies)
    table.add_section()
    table.add_row("all", "", f"{1:.1%}", f"{use.top1:.2f}", f"{use.full_top1:.2f}")
    share = use.operations / use.full_operations
    lines = [remark, f"Operations per image: {use.operations:,.0f}, {share:.1%} of the full network."]
    found = use.policy.found
    if "milliseconds" in found:
        share = found["milliseconds"] / found["times"][-1]
        how = "a stream" if found["batch"] == "stream" else f"batches of {found['batch']}"
        lines.append(
            f"Milliseconds per image: {found['milliseconds']:.4g}, {share:.1%} of the full network, as measured in "
            f"{how} on {found['device']}."
        )
    return Group(table, *map(Text, lines))


def xray_table(report: XrayReport) -> RenderableType:
    """What the gradients of each exit did in the last epoch, and what the damping value tells on test."""
    first = report.exits[0]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    coefficients = [
        *(["median γ"] if first.gamma is not None else []),
        *(["mean w"] if first.weight is not None else []),
    ]
    told = ["F[N+1] tells"] if report.telling else []
    names = ["exit", *(f"{state} %" for state in STATES), "mean F[y]", *coefficients, "right %", "since epoch", *told]
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)  # no markup: [y] would be a style
    for k, exit in enumerate(report.exits):
        row = [str(k + 1), *(f"{100 * share:.1f}" for share in exit.shares), f"{exit.true:.4f}"]
        row += [f"{exit.gamma:#.3g}"] if exit.gamma is not None else []
        row += [f"{exit.weight:.2f}"] if exit.weight is not None else []
        row += [f"{100 * exit.learned:.1f}", "-" if exit.learned_by is None else str(exit.learned_by)]
        if report.telling:
            ranking = report.telling[k].ranking
            row += ["-" if ranking is None else f"{ranking:.3f}"]
        table.add_row(*row)
    lines = [
        f"Epoch {report.epoch}, {len(report.record.indices_W)} images of {report.record.split}, as training saw them",
        f"needed: at least {NEEDED:.0%} of plain cross-entropy's push on the true class is left; damped: less; "
        "reversed: it is pushed down",
    ]
    if report.telling:
        lines += [
            "F[N+1] tells: chance that it is larger for a test image answered wrongly than for one answered rightly"
        ]
    return Group(table, *map(Text, lines))
