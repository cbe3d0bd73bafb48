"""What a policy does, exit by exit, as a table for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from offramp.policy import EVERYBODY, NOBODY
from offramp.reports.policy import PolicyUse


def exit_table(use: PolicyUse, remark: str) -> RenderableType:
    """A row an exit and one for all images, `remark` on what the figures are worth, and what an image costs."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("exit", "leaves from", "images", "top-1 %", "last exit on them %"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, exit in enumerate(use.exits, 1):
        threshold = {NOBODY: "nobody", EVERYBODY: "all"}.get(exit.threshold, f"{exit.threshold:.4f}")
        accuracies = ("-" if value is None else f"{value:.2f}" for value in (exit.top1, exit.full_top1))
        table.add_row(str(k), threshold, f"{exit.share:.1%}", *accuracies)
    table.add_section()
    table.add_row("all", "", f"{1:.1%}", f"{use.top1:.2f}", f"{use.full_top1:.2f}")
    share = use.operations / use.full_operations
    lines = [remark, f"Operations per image: {use.operations:,.0f}, {share:.1%} of the full network."]
    found = use.policy.found
    if "milliseconds" in found:
        share = found["milliseconds"] / found["times"][-1]
        lines.append(
            f"Milliseconds per image: {found['milliseconds']:.4g}, {share:.1%} of the full network, as measured on "
            f"{found['device']}, batch {found['batch']}."
        )
    return Group(table, *map(Text, lines))
