"""The exits of a run on its test set, on some training images, and under thresholds."""

from offramp.commands.open_run import OpenRun
from offramp.commands.sample import Sample
from offramp.errors import UsageError
from offramp.evaluation import anytime
from offramp.policy import Measure
from offramp.results.bench import bench_of
from offramp.results.dynamic import dynamic
from offramp.results.evaluation import Evaluation
from offramp.show.watch import Watch


def measured_exits(run: OpenRun, train_limit: int, *, renormalise: bool, watch: Watch) -> Evaluation:
    """All figures that `evaluate` writes; of at most `train_limit` training images. See `EvaluateOptions`."""
    folder, parts = run.folder, run.parts
    train, thresholds = None, None
    with watch.bars() as progress:
        test = run.record(parts.test, "test", progress)
        if train_limit:
            train = anytime(run.record(Sample(parts.train, train_limit), "train", progress), renormalise=renormalise)
        no_thresholds = run.no_thresholds()
        if no_thresholds is None:
            search = run.record(parts.val.search, "search", progress)
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
        train=train,
        cost=run.cost,
        dynamic=thresholds,
        no_dynamic=no_thresholds,
        weights=test.weights,
        fingerprint=test.fingerprint,
        made_on=test.made_on,
        bench=None if thresholds is None else bench_of(folder, test.weights, thresholds.policy),
    )
