"""`offramp example`: a small trained network, to try the other commands on."""

import shlex
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from offramp import shipped
from offramp.commands.options import Flag, Options
from offramp.config import unset
from offramp.shipped import Card
from offramp.terminal import escaped, short, with_error


@dataclass(frozen=True, kw_only=True)
class ExampleOptions(Options):
    """Copy a small trained network, to try the other commands on."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = field(
        default="fashion-mnist", kw_only=False
    )
    """Which one."""
    out: Annotated[Path | None, unset("DIR")] = None
    """Folder to copy it to, a finished run's (default: runs/NAME)."""
    names: Annotated[Flag, tyro.conf.arg(name="list")] = False
    """List the networks instead, one a line."""

    def main(self) -> None:
        if self.names:
            known = shipped.names()
            if self.json:
                print(dumps({name: shipped.card(name).summary for name in known}))
                return
            width = max(map(len, known))
            for name in known:
                print(f"{name:<{width}}  {shipped.card(name).summary}")
            return
        out = Path("runs", self.name) if self.out is None else self.out
        copied = shipped.copy(self.name, out)
        if self.json:
            known_of = {"name": self.name, "summary": shipped.card(self.name).summary}
            print(dumps({**known_of, "written": str(out), "copied": copied, "next": next_commands(out)}))
            return
        _print_card(self.name, shipped.card(self.name))
        print(escaped(f"Copied to {out}." if copied else f"{out} holds it already; nothing to do."))
        print("Next:", *(f"  {escaped(line)}" for line in next_commands(out)), sep="\n")


def next_commands(out: Path) -> list[str]:
    """What to try on a copy."""
    run, images = shlex.quote(str(out)), shlex.quote(str(out / "images"))
    return [f"offramp certify {run}", f"offramp bench {run}", f"offramp predict {run} {images}"]


def _print_card(name: str, card: Card) -> None:
    print(f"{name}: {card.summary}")
    print(f"Data: {card.data['about']} Licence: {card.data['licence']}. {card.data['source']}")
    if card.at_hand is not None:
        print(f"The commands use the part of it that comes with offramp: {card.at_hand}.")
    print(f"Recipe: {card.command}")
    print(f"Trained in {card.training}.")
    images = card.evaluation["images"]
    for exit in card.evaluation["exits"]:
        top1 = with_error(exit["top1"], exit["top1_se"], images)
        print(f"Exit {exit['exit']}: top-1 {top1} %, {short(exit['operations'])} operations")
    print(f"Measured on the {images} test images; ±: standard error over the images.")
