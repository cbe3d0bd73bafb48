"""`offramp evaluate`: every exit of a finished run on its test set, and what thresholds do."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Unpack

from offramp.checks import whole
from offramp.commands.options import ByHand, Flag, PlotFiles, RecordsLogits, in_threads
from offramp.errors import UsageError
from offramp.json_files import encoded
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.storage import write_files

if TYPE_CHECKING:
    from offramp.commands.open_run import OpenRun
    from offramp.results.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RecordsLogits):
    """Measure every exit of a finished run on its test set.

    It begins with a sentence that says what leaving early is worth. Accuracy, cost, likelihood, calibration,
    damping; what the run's policy does, what is certified of it (offramp certify), how fast it is (offramp bench).
    Writes RUN/evaluation.json and RUN/report.html. Logits are kept in RUN/records and used again.
    """

    plots: PlotFiles = None
    """Also write the plots as files of this kind, to RUN/plots."""
    train_limit: Annotated[int, whole(0)] = 10_000
    """Training images, evenly spread, on which the exits are measured too; 0 for none."""
    renormalise: Flag = False
    """Likelihood, calibration and confidence of classes that sum to 1, without the damping neuron."""

    def main(self) -> None:
        evaluation = evaluate(self, watch=IN_TERMINAL)
        from offramp.show.figures import note_missing
        from offramp.show.tables import run_table

        print_result(evaluation.to_json, lambda: run_table(evaluation), evaluation.written, as_json=self.json)
        note_missing(evaluation.run.report.name)


@in_threads
def evaluate(
    options: EvaluateOptions, *, page: bool = True, watch: Watch = QUIET, **by_hand: Unpack[ByHand]
) -> "Evaluation":
    """Measure every exit of a finished run on its test set, and write what was found into its folder.

    Where images were held out, also what thresholds do: the published curve, searched thresholds, and one policy in
    detail, the run's own (`policy.json`) or one found here. Where that cannot be said, the result says why.
    Without `page` no `report.html` is written, nor where matplotlib is not installed.
    """
    from offramp.commands.open_run import OpenRun
    from offramp.commands.sheet import sheet
    from offramp.show import figures
    from offramp.show.report import report_files

    if options.plots is not None:
        figures.require()
    run = OpenRun(options, **by_hand)
    evaluation = _measured(run, options, watch)
    drawn = report_files(evaluation, lambda picked: sheet(picked, run.parts.test), page=page, plots=options.plots)
    written = write_files({run.folder.evaluation: encoded(evaluation.to_json()), **drawn})
    return dataclasses.replace(evaluation, written=tuple(sorted(written, key=lambda path: path == run.folder.report)))


def _measured(run: "OpenRun", options: EvaluateOptions, watch: Watch) -> "Evaluation":
    from offramp.commands.sample import Sample
    from offramp.evaluation import anytime
    from offramp.policy import Measure
    from offramp.results.bench import bench_of
    from offramp.results.dynamic import dynamic
    from offramp.results.evaluation import Evaluation

    folder, renormalise = run.folder, options.renormalise
    train, thresholds = None, None
    with watch.bars() as progress:
        test = run.record(run.parts.test, "test", progress)
        if options.train_limit:
            train = run.record(Sample(run.parts.train, options.train_limit), "train", progress)
        no_thresholds = run.no_thresholds()
        if no_thresholds is None:
            search = run.record(run.parts.val.search, "search", progress)
            try:
                thresholds = dynamic(search, test, run.cost, folder.policy, Measure(renormalise=renormalise))
            except UsageError as error:  # data made by hand may have parts whose names do not say what they are for
                no_thresholds = str(error)
    return Evaluation(
        run=folder,
        config=run.config,
        starts=folder.read_starts(),
        metrics=folder.read_metrics(),
        test=anytime(test, renormalise=renormalise),
        train=None if train is None else anytime(train, renormalise=renormalise),
        cost=run.cost,
        dynamic=thresholds,
        no_dynamic=no_thresholds,
        weights=test.weights,
        fingerprint=test.fingerprint,
        made_on=test.made_on,
        bench=None if thresholds is None else bench_of(folder, test.weights, thresholds.policy),
    )
