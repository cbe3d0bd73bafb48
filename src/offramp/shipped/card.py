"""Which networks ship with the package, and what each folder says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.checks import check_name
from offramp.files import RunFolder, Start
from offramp.json_files import convert, read

CARD = "card.json"


@dataclass(frozen=True)
class Card:
    """What is known of a shipped network, read from its folder.

    Attributes:
        summary: One line: network, objective, data.
        data: `about`, `licence` and `source` (an address) of the data set.
        division: Images for `train`, `search`, `certify` and `test`.
        at_hand: The shipped data set that commands use on a copy, where the one trained on does not ship.
        chosen: How settings and seed were chosen.
        seconds: How long the training took.
        processor: What it ran on.
        images: For each file of `images/` its `class`, a number in [0, N), and its `index` in the data set.
        sha256: Hash of each file's bytes, by its path in the folder; all files but `card.json` itself.
        start: What `environment.json` says of the training.
        evaluation: What `evaluation.json` holds: the figures of every exit on the test set.
    """

    summary: str
    data: Mapping[str, str]
    division: Mapping[str, int]
    at_hand: str | None
    chosen: str
    seconds: float
    processor: str
    images: Mapping[str, Mapping[str, int]]
    sha256: Mapping[str, str]
    start: Start
    evaluation: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Card":
        """The card of a shipped network's folder, wherever that is."""
        run = RunFolder(path)
        start, *_ = read(run.environment, list[Any])
        more = {"start": start, "evaluation": read(run.evaluation, dict[str, Any])}
        return convert({**read(path / CARD, dict[str, Any]), **more}, cls, path / CARD)

    @property
    def command(self) -> str:
        """What trains it again."""
        return str(self.start.command)

    @property
    def training(self) -> str:
        """One line: time and place of the training."""
        start = self.start
        threads = f"{start.threads} thread{'' if start.threads == 1 else 's'}"
        return f"{self.seconds:.0f} s on {self.processor}, {threads}, Python {start.python}, torch {start.torch}"


def names() -> list[str]:
    """The shipped networks, in alphabetical order."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob(f"*/{CARD}"))


def folder(name: str) -> Path:
    """Where a shipped network lies in the package, to read only: `offramp.load(offramp.shipped.folder("digits"))`.

    Raises:
        UsageError: No network of that name ships.
    """
    check_name("example", name, names())
    return Path(__file__).parent / name


def card(name: str) -> Card:
    """What is known of a shipped network.

    Raises:
        UsageError: No network of that name ships.
    """
    return Card.of(folder(name))
