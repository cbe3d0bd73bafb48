"""What a command is asked, and the options that several commands have, each written once. Nothing here imports torch.

The command line is made from these classes: a field is an option, the docstring under it is its help. In Python a
command is a function of its options: `evaluate(EvaluateOptions("runs/photos", plots="svg"))`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal, ParamSpec, TypedDict, TypeVar, get_args

import tyro

from offramp.checks import check_fields, whole
from offramp.choices import Backend, Plots
from offramp.config import SpecFlag, unset
from offramp.storage import check_writable

if TYPE_CHECKING:
    from offramp.data import PartsGiven
    from offramp.network import EarlyExitNet

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
File = Annotated[str | Path | None, unset("FILE")]
Folder = Annotated[str | Path | None, unset("DIR")]
PlotFiles = Annotated[Plots | None, unset(f"{{{','.join(get_args(Plots))}}}")]
NamedModel = Annotated[tyro.conf.Positional[SpecFlag], tyro.conf.arg(help_behavior_hint="(required)")]
AnyBackend = Literal["auto", Backend]


def several(metavar: str) -> Any:
    """For a positional that takes one METAVAR or more, which its help says."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(one or more)")


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """What a command is asked."""

    json: Flag = False
    """Print one JSON object, and nothing else, to standard output."""

    def __post_init__(self) -> None:
        check_fields(self, hyphens=True)

    @abstractmethod
    def main(self) -> None:
        """Run the command, and print what comes of it."""


@dataclass(frozen=True, kw_only=True)
class OpensRuns(Options):
    """Of a command that may build what the folder of a run names."""

    allow_code: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE")]] = ()
    """Let runs that were not made here name code of this package, which is run then."""


@dataclass(frozen=True, kw_only=True)
class OnRun(OpensRuns):
    """Of a command on one run."""

    run: Annotated[tyro.conf.Positional[str | Path], tyro.conf.arg(metavar="RUN")] = field(kw_only=False)
    """Folder of a finished run."""
    root: Annotated[str | None, unset("DIR")] = None
    """Folder that holds the data set's files, if it is not where it was in training."""


@dataclass(frozen=True, kw_only=True)
class Computes(Options):
    """Of a command that computes with torch."""

    threads: Annotated[int | None, whole(1, 1024), unset("INT")] = None
    """CPU threads of torch."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(OnRun, Computes):
    """Of a command that runs the network of a run."""

    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class RecordsLogits(OnDevice):
    """Of a command that keeps the logits of a run's network in `records/`, and uses them again."""

    batch_size: Annotated[int | None, unset("INT")] = None
    """Largest number of images in one forward pass, below the run's own batch size."""


class ByHand(TypedDict, total=False):
    """What a run that was fit from Python with things made by hand cannot bring back: see `offramp.commands`."""

    parts: "PartsGiven | None"
    into: "EarlyExitNet | None"


def target(out: str | Path | None, default: Path) -> Path:
    """The file to write, `out` or a run's own; where it cannot be, that is said before any work."""
    path = default if out is None else Path(out).expanduser()
    check_writable(path)
    return path


P = ParamSpec("P")
R = TypeVar("R")
Asked = TypeVar("Asked", bound=Computes)


def in_threads(command: Callable[Concatenate[Asked, P], R]) -> Callable[Concatenate[Asked, P], R]:
    """The command, run in as many threads of torch as its options say; afterwards torch has those it had before."""

    @functools.wraps(command)
    def run(options: Asked, /, *args: P.args, **more: P.kwargs) -> R:
        from offramp.devices import with_threads

        with with_threads(options.threads):
            return command(options, *args, **more)

    return run
