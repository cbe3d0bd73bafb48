"""`offramp evaluate`: every exit of a finished run on its test set, and what thresholds do."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.choices import Plots
from offramp.commands.options import Flag, RecordsLogits, in_threads
from offramp.errors import UsageError
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch

if TYPE_CHECKING:
    from offramp.data import PartsGiven
    from offramp.network import EarlyExitNet
    from offramp.results.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RecordsLogits):
    """Measure every exit of a finished run on its test set.

    It begins with a sentence that says what leaving early is worth. Accuracy, cost, likelihood, calibration,
    damping; what the run's policy does, what is certified of it (offramp certify), how fast it is (offramp bench).
    Writes RUN/evaluation.json and RUN/report.html. Logits are kept in RUN/records and used again.
    """

    plots: Plots | None = None
    """Also write the plots as files of this kind, to RUN/plots."""
    train_limit: int = 10_000
    """Training images, evenly spread, on which the exits are measured too; 0 for none."""
    renormalise: Flag = False
    """Likelihood, calibration and confidence of classes that sum to 1, without the damping neuron."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_limit < 0:
            raise UsageError(f"train-limit must be at least 0, not {self.train_limit}.")

    def main(self) -> None:
        """See `Options.main`."""
        evaluation = evaluate(self, watch=IN_TERMINAL)
        from offramp.show.figures import note_missing
        from offramp.show.tables import run_table

        print_result(evaluation.to_json, lambda: run_table(evaluation), evaluation.written, as_json=self.json)
        note_missing(evaluation.run.report.name)


@in_threads
def evaluate(
    options: EvaluateOptions,
    *,
    parts: "PartsGiven | None" = None,
    into: "EarlyExitNet | None" = None,
    page: bool = True,
    watch: Watch = QUIET,
) -> "Evaluation":
    """Measure every exit of a finished run on its test set, and write what was found into its folder.

    Where images were held out, also what thresholds do: the published curve, searched thresholds, and one policy in
    detail, the run's own (`policy.json`) or one found here. Where that cannot be said, the result says why.

    Logits are kept in `records/` and used again as long as weights and images are the same. Written are
    `evaluation.json`, `report.html` (where matplotlib is installed) and, on request, `plots/`. `renormalise` is reading
    A9(a) of the method, the default A9(b).

    `parts` are the data, and `into` is a network of the same make, of a run that was fit from Python with those made by
    hand. Without `page` no `report.html` is written.

    Raises:
        UsageError: No run, an unfinished one, data that cannot be found again or is not what the run was trained on.
    """
    from offramp.commands.measured_exits import measured_exits
    from offramp.commands.open_run import OpenRun
    from offramp.commands.sheet import sheet
    from offramp.commands.writing import write_result
    from offramp.show import figures
    from offramp.show.report import report_files

    if options.plots is not None:
        figures.require()
    run = OpenRun(options, "evaluate", "evaluation writes its logits and figures there", parts, into)
    evaluation = measured_exits(run, options.train_limit, renormalise=options.renormalise, watch=watch)
    drawn = report_files(evaluation, lambda picked: sheet(picked, run.parts.test), page=page, plots=options.plots)
    written = write_result(evaluation.to_json(), run.folder.evaluation, drawn)
    return dataclasses.replace(evaluation, written=tuple(sorted(written, key=lambda path: path == run.folder.report)))
