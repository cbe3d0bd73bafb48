"""`offramp example`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.terminal import escaped

if TYPE_CHECKING:
    from offramp.shipped import Card


def example(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = "digits",
    *,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    names: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Copy a small trained network that ships with offramp, to try the other commands on.

    Args:
        name: Which one.
        out: Folder to copy it to, a finished run's (default: runs/NAME).
        names: List the networks instead, one a line.
    """
    from offramp import shipped

    if names:
        known = shipped.names()
        width = max(map(len, known))
        for one in known:
            print(f"{one:<{width}}  {shipped.card(one).summary}")
        return
    out = Path("runs", name) if out is None else out
    copied = shipped.copy(name, out)
    _print_card(name, shipped.card(name))
    print(escaped(f"Copied to {out}." if copied else f"{out} holds it already; nothing to do."))
    print("Next:", *(f"  {escaped(line)}" for line in next_commands(out)), sep="\n")


def next_commands(out: Path) -> list[str]:
    """What to try on a copy."""
    run, images = shlex.quote(str(out)), shlex.quote(str(out / "images"))
    return [f"offramp certify {run}", f"offramp bench {run}", f"offramp predict {run} {images}"]


def _print_card(name: str, card: "Card") -> None:
    from offramp.reports.figures import short
    from offramp.reports.report import with_error

    print(f"{name}: {card.summary}")
    print(f"Data: {card.data['about']} Licence: {card.data['licence']}. {card.data['source']}")
    print(f"Recipe: {card.command}")
    print(f"Trained in {card.training}.")
    images = card.evaluation["images"]
    for exit in card.evaluation["exits"]:
        top1 = with_error(exit["top1"], exit["top1_se"], images)
        print(f"Exit {exit['exit']}: top-1 {top1} %, {short(exit['operations'])} operations")
    print(f"Measured on the {images} test images; ±: standard error over the images.")
