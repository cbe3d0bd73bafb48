"""`offramp compare`: runs side by side."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.commands.evaluate import EvaluateOptions, evaluate
from offramp.commands.options import Computes, File, OpensRuns, in_threads, several
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.storage import check_writable, write_files

if TYPE_CHECKING:
    from offramp.files.evaluation import EvaluationFile
    from offramp.results.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class CompareOptions(OpensRuns, Computes):
    """Put runs side by side, with their seeds grouped.

    Mean, standard deviation and half-range of every exit. Runs that have no current evaluation are evaluated first.
    Differences to the first group are paired by seed.
    """

    runs: Annotated[tyro.conf.Positional[Sequence[str | Path]], several("RUN")] = field(kw_only=False)
    """Folders of finished runs, or folders that hold several, such as `offramp train --seeds 5` makes."""
    out: File = None
    """Also write the tables to FILE: a page with a plot (.html), or Markdown (.md)."""
    plot: File = None
    """Also write accuracy against operations to FILE (.svg or .png)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise UsageError("Name at least one run: offramp compare RUN ...")
        _refuse_unless_writable("--out", self.out, (".html", ".md"))
        _refuse_unless_writable("--plot", self.plot, (".svg", ".png"))

    def main(self) -> None:
        comparison = compare(self, watch=IN_TERMINAL)
        from offramp.show.side_by_side import on_terminal

        print_result(comparison.to_json, lambda: on_terminal(comparison), comparison.written, as_json=self.json)


@in_threads
def compare(options: CompareOptions, *, watch: Watch = QUIET) -> "Comparison":
    """Put runs side by side; a folder that holds several stands for all of them.

    Unfinished runs are left out of such a folder, and noted.
    """
    from offramp.files.evaluation import current
    from offramp.results.comparison import Comparison, Measured, grouped
    from offramp.show import figures, side_by_side

    if options.plot is not None:
        figures.require()

    def measured(run: RunFolder) -> "EvaluationFile":
        known = current(run)
        if known is not None:
            return known
        watch.note(f"Evaluating {run.path}")
        asked = EvaluateOptions(run.path, allow_code=options.allow_code)
        return evaluate(asked, page=False, watch=watch).summary()

    runs = _expanded(options.runs, watch.note)
    comparison = Comparison(grouped([Measured(run.path, run.read_config().values, measured(run)) for run in runs]))
    files: dict[Path, bytes] = {}
    if options.out is not None:
        out = Path(options.out)
        text = side_by_side.html(comparison) if out.suffix == ".html" else side_by_side.markdown(comparison)
        files[out] = text.encode()
    if options.plot is not None:
        plot = Path(options.plot)
        files[plot] = side_by_side.plot(comparison, "svg" if plot.suffix == ".svg" else "png")
    return dataclasses.replace(comparison, written=write_files(files))


def _refuse_unless_writable(option: str, file: str | Path | None, endings: tuple[str, str]) -> None:
    if file is None:
        return
    if Path(file).suffix not in endings:
        raise UsageError(f"{option} {file} should end in {endings[0]} or {endings[1]}.")
    check_writable(Path(file))


def _expanded(runs: Sequence[str | Path], note: Callable[[str], None]) -> list[RunFolder]:
    """The runs themselves, each once. Unfinished ones are left out of a folder of several, refused where named."""
    found: dict[Path, RunFolder] = {}
    for given in map(RunFolder, runs):
        inside = [given] if given.config.is_file() else list(map(RunFolder, _runs_in(given.path)))
        if not inside:
            raise UsageError(f"{given.path} is not a run and holds none: there is no config.json in it.")
        for folder in inside:
            if folder.weights.is_file():
                found.setdefault(folder.path.resolve(), folder)
            elif folder is given:
                raise UsageError(f"{folder.path} is not finished: it has no weights yet.")
            else:
                note(f"{folder.path} is not finished and was left out.")
    if not found:
        raise UsageError("None of the runs is finished.")
    return list(found.values())


def _runs_in(path: Path) -> list[Path]:
    return sorted((config.parent for config in path.rglob("config.json")), key=_naturally) if path.is_dir() else []


def _naturally(path: Path) -> list[str | int]:
    """Sorts seed-2 before seed-10: text and numbers in turn."""
    return [int(word) if word.isdigit() else word for word in re.split("([0-9]+)", str(path))]
