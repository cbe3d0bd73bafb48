"""Tables of results for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from offramp.costs import Cost
from offramp.evaluation import Audit
from offramp.results.dynamic import leaves_from
from offramp.results.evaluation import Evaluation
from offramp.results.outcome import outcome
from offramp.results.policy_use import LadderUse, PolicyUse
from offramp.results.prediction import Prediction
from offramp.results.xray import XrayReport
from offramp.show.terminal import ruled_table
from offramp.terminal import escaped, short, with_error


def run_table(evaluation: Evaluation) -> RenderableType:
    """Every exit of a run: cost, accuracy, likelihood, calibration, damping."""
    test, train = evaluation.test, evaluation.train
    top5, damped = test.exits[0].top5 is not None, test.exits[0].damping is not None
    names = ["exit", "operations", "parameters", "top-1 %", *(["top-5 %"] if top5 else []), "NLL", "ECE"]
    if damped:
        names += ["F[N+1] test", *(["F[N+1] train"] if train else [])]
    table = ruled_table(*names)
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
    first = outcome(evaluation)
    if evaluation.dynamic is not None:
        lines += filter(None, (evaluation.dynamic.note, evaluation.dynamic.warning))
    elif len(test.exits) > 1:
        lines.append(f"No dynamic inference: {evaluation.no_dynamic}")
    texts = map(Text, lines)  # no markup: a path may have brackets
    return Group(*([] if first is None else [Text(escaped(first), style="bold")]), table, *texts)


def exit_table(use: PolicyUse, remark: str) -> RenderableType:
    """A row an exit and one for all images, `remark` on what the figures are worth, and what an image costs."""
    table = ruled_table("exit", "leaves from", "images", "top-1 %", "last exit on them %")
    for k, exit in enumerate(use.exits, 1):
        accuracies = ("-" if value is None else f"{value:.2f}" for value in (exit.top1, exit.full_top1))
        table.add_row(str(k), leaves_from(exit.threshold), f"{exit.share:.1%}", *accuracies)
    table.add_section()
    table.add_row("all", "", f"{1:.1%}", f"{use.top1:.2f}", f"{use.full_top1:.2f}")
    share = use.operations / use.full_operations
    lines = [remark, f"Operations per image: {use.operations:,.0f}, {share:.1%} of the full network."]
    known = use.policy.found
    if "milliseconds" in known:
        share = known["milliseconds"] / known["times"][-1]
        how = "a stream" if known["batch"] == "stream" else f"batches of {known['batch']}"
        lines.append(
            f"Milliseconds per image: {known['milliseconds']:.4g}, {share:.1%} of the full network, as measured in "
            f"{how} on {known['device']}."
        )
    return Group(table, *map(Text, lines))


LOST = {
    "regret": "images that leave early with a wrong answer though the full network is right, as a share of all",
    "early-error": "wrong answers among the images that leave early, as a share of these",
    "drop": "the accuracy lost against the full network",
}


def ladder_table(use: LadderUse) -> RenderableType:
    """A row a rung, what is promised of all of them, and which could not be certified."""
    table = ruled_table("rung", "risk at most", "operations", "leave early", "top-1 %", "differ from the last exit")
    first, promise = use.rungs[0], use.ladder.certificates[0].promise
    for n, (one, certificate) in enumerate(zip(use.rungs, use.ladder.certificates, strict=True), 1):
        differ = certificate.disagreement
        table.add_row(
            str(n),
            f"{100 * certificate.promise.risk:g} %",
            f"{one.operations / one.full_operations:.1%}",
            f"{1 - one.exits[-1].share:.1%}",
            f"{one.top1:.2f}",
            "-" if differ is None else f"{differ.differing} of {differ.early}, at most {differ.limit:.2%}",
        )
    where = ", in every class" if use.ladder.certificates[0].per_class else ""
    lines = [
        f"With {use.ladder.confidence} confidence no rung's risk is above its own: all at once (each alone: "
        f"{promise.confidence}).",
        f"The risk{where}: {LOST[promise.loss]}.",
        f"All other figures are of the {first.images} images of {first.split}: a description, no promise. The full "
        f"network's accuracy there: {first.full_top1:.2f} %.",
        *(f"Left out: {100 * rung.risk:g} %. {rung.why}" for rung in use.ladder.left_out),
    ]
    return Group(table, *map(Text, lines))


def xray_table(report: XrayReport) -> RenderableType:
    """What the gradients of each exit did in the last epoch, and what the damping value tells on test."""
    first, record = report.exits[0], report.record
    names = ["exit", *(f"{state} %" for state in record.STATES), "mean F[y]"]
    names += ["median γ"] if first.gamma is not None else []
    names += ["mean w"] if first.weight is not None else []
    names += ["right %", "since epoch", *(["F[N+1] tells"] if report.error_detection else [])]
    table = ruled_table(*names)
    for k, exit in enumerate(report.exits):
        row = [str(k + 1), *(f"{100 * share:.1f}" for share in exit.shares), f"{exit.true:.4f}"]
        row += [f"{exit.gamma:#.3g}"] if exit.gamma is not None else []
        row += [f"{exit.weight:.2f}"] if exit.weight is not None else []
        row += [f"{100 * exit.learned:.1f}", "-" if exit.learned_by is None else str(exit.learned_by)]
        if report.error_detection:
            ranking = report.error_detection[k].ranking
            row += ["-" if ranking is None else f"{ranking:.3f}"]
        table.add_row(*row)
    lines = [
        f"Epoch {report.epoch}, {len(record.indices_W)} images of {record.split}, as training saw them",
        f"needed: at least {record.NEEDED:.0%} of plain cross-entropy's push on the true class is left; damped: less; "
        "reversed: it is pushed down",
    ]
    if report.error_detection:
        lines += [
            "F[N+1] tells: chance that it is larger for a test image answered wrongly than for one answered rightly"
        ]
    return Group(table, *map(Text, lines))


def prediction_table(page: Sequence[Prediction]) -> RenderableType:
    """A row a file."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    for name in ("exit", "confidence", "operations"):
        table.add_column(name, justify="right", no_wrap=True)
    for prediction in page:  # Text: a name in brackets is no markup
        numbers = str(prediction.exit), f"{prediction.confidence:.4f}", f"{prediction.operations:.1%}"
        table.add_row(Text(escaped(prediction.file)), Text(escaped(prediction.class_name)), *numbers)
    return table


def audit_table(report: Audit) -> RenderableType:
    """A row a setting."""
    names = ("images", "thresholds", "broken", "at least (99.9 %)", "promised", "", "none chosen", "leave early")
    table = ruled_table("population", *names, left=1)
    for finding in report.findings:
        table.add_row(
            finding.population,
            f"{finding.images}",
            f"{finding.candidates}",
            f"{finding.rate:.2%}",
            f"{finding.limit:.2%}",
            f"{finding.promised:.2%}",
            "ok" if finding.passes else "BROKEN",
            f"{finding.none / finding.trials:.1%}",
            f"{finding.leaving:.1%}",
        )
    return table


def cost_tables(title: str, counted: Cost) -> tuple[RenderableType, ...]:
    """Up to each exit; and each stage and each head by itself."""
    exits = ruled_table(
        *("exit", "operations", "of all", "multiply-adds", "parameters", "alone"),
        title=f"{escape(escaped(title))}: up to each exit",
        pad_edge=True,
    )
    parts = ruled_table(
        *("stage", "operations", "parameters", "head", "operations", "parameters"),
        title="each stage and each head by itself",
        caption='For one image; counts, not latencies. Operations are the paper\'s FLOPs; "alone": with no other head.',
        pad_edge=True,
    )
    for k, (upto, alone, stage, head) in enumerate(
        zip(counted.exits, counted.path, counted.stages, counted.heads, strict=True), 1
    ):
        share = upto.operations / max(counted.exits[-1].operations, 1)
        numbers = (f"{upto.multiply_adds:,}", f"{upto.parameters:,}", f"{alone.operations:,}")
        exits.add_row(str(k), f"{upto.operations:,}", f"{share:.1%}", *numbers)
        of_head = (str(k), f"{head.operations:,}", f"{head.parameters:,}")
        parts.add_row(str(k), f"{stage.operations:,}", f"{stage.parameters:,}", *of_head)
    return exits, parts


def layers_table(layers: Mapping[str, Any], every: bool) -> RenderableType:
    """A row a cut: those that carry one tensor or are taken by `at=auto`, or `every` one."""
    channels, height, width = layers["image_shape"]
    shown = [cut for cut in layers["cuts"] if every or cut["auto"] or len(cut["carry"]) == 1]
    left_out = len(layers["cuts"]) - len(shown)
    more = f" {left_out} more cuts carry several tensors (--every)." if left_out else ""
    num_refused = len(layers["not_after"])
    refused = f" {num_refused} modules cannot be cut after (--json says why)." if num_refused else ""
    table = Table(
        title=f"{layers['model']}: where it can be cut, {channels} x {height} x {width} images",
        caption=(
            f"For one image; of {layers['operations']:,} operations in all (as `offramp cost` counts, the last exit "
            f"included). *: taken by at=auto.{more}{refused}"
        ),
        box=SIMPLE_HEAD,
    )
    table.add_column("after", overflow="fold")
    for heading in ("operations", "of all", "carry", "numbers", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for cut in shown:
        carry = " + ".join(" x ".join(map(str, sizes)) for sizes in cut["carry"])
        numbers = (f"{cut['operations']:,}", f"{cut['share']:.1%}", carry, f"{cut['size']:,}")
        table.add_row(cut["after"], *numbers, "*" if cut["auto"] else "")
    return table
