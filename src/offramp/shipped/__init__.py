"""Small trained networks that ship with the package, each a finished run's folder: something to try everything on.

Each is a folder here, made by `benchmarks/ship.py` and by nothing else:

config.json, environment.json, split.json, metrics.jsonl, input.json, weights.safetensors
                     as `offramp train` leaves them, with the paths of the machine taken out
evaluation.json      the figures of every exit on the test set, as `offramp evaluate` leaves them
images/              one test image of each class, named by class and position, at the network's image size
card.json            what the folder holds, for programs: `Card`
CARD.md              the same for people

Adding a network is adding a folder.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.checks import check_name
from offramp.errors import OfframpError, UsageError
from offramp.files import CARD, RunFolder, Start
from offramp.json_files import convert, read
from offramp.storage import sync_folder, write_atomically

__all__ = ["Card", "card", "copy", "folder", "names"]


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
        images: For each file of `images/` its `class`, a number in [0, N), and its `index` in the data set.
        sha256: Hash of each file's bytes, by its path in the folder; all files but `card.json` itself.
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
    """Where a shipped network lies in the package, to read only: `offramp.load(offramp.shipped.folder("digits"))`."""
    check_name("example", name, names())
    return Path(__file__).parent / name


def card(name: str) -> Card:
    """What is known of a shipped network."""
    return Card.of(folder(name))


def copy(name: str, path: str | Path) -> bool:
    """Copy a shipped network's folder to `path`, whole or not at all. It is a finished run, like any other.

    Returns:
        Whether it was copied. False: `path` holds it already; nothing is touched.

    Raises:
        UsageError: No network of that name ships, or `path` is not empty and holds something else.
        OfframpError: `path` cannot be written.
    """
    known, source, target = card(name), folder(name), Path(path).expanduser()
    try:
        if target.is_dir() and any(target.iterdir()):
            if _holds(target, known):
                return False
            raise UsageError(
                f"{target} is not empty and is no whole copy of the example {name}; choose a folder that does not "
                "exist yet."
            )
        if target.is_dir() and target.samefile(Path.cwd()):
            raise UsageError("The folder you are in cannot be replaced; choose one that does not exist yet.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".part") as beside:
            new = Path(beside) / target.name
            new.mkdir()
            for file in (CARD, *known.sha256):
                write_atomically(new / file, (source / file).read_bytes())
            os.replace(new, target)
        sync_folder(target.parent)
    except OSError as error:
        raise OfframpError(f"{target} cannot be written: {error.strerror or error}.") from error
    return True


def _holds(target: Path, known: Card) -> bool:
    """Whether every file of the network is there unchanged. Others may be there too: certificates, records."""
    rewritten = RunFolder(target).evaluation  # by `offramp evaluate`
    return all(
        (target / file).is_file() and hashlib.sha256((target / file).read_bytes()).hexdigest() == digest
        for file, digest in known.sha256.items()
        if target / file != rewritten
    )
