"""The paper's Tables 1 to 8 and Figures 3 and 4 as data, and leagues of all methods: which runs make which row.

Each function gives an experiment for a scale. A row is one configuration, trained with several seeds; its columns are
the exits. Rows that need the same run share it. What the docstrings expect is the paper's, on the paper's data; times
are `offramp reproduce all --dry-run`'s to say.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from offramp.checks import did_you_mean
from offramp.config import Run, Spec
from offramp.errors import UsageError
from offramp.paper import methods
from offramp.paper import pilot as deciding
from offramp.paper.identity import run_hash, run_name, second_stage
from offramp.paper.methods import Method
from offramp.paper.scales import Of, Scale, Setting
from offramp.paper.watching import watched

Shows = Literal["exits", "groups", "damping", "last-exit", "threshold", "budgeted", "study", "pilot"]


@dataclass(frozen=True)
class Row:
    """One configuration of an experiment.

    Attributes:
        run: Its configuration with seed 0.
        setting: Where its data, network and recipe are from.
        work: Work of an image over that of cross-entropy, about.
        best_epoch: Whether it shows the epoch that was best on the test set, and not the last.
        in_paper: Whether the paper has this row.
        threshold: The share of softmax above which gradients are discarded, for Figure 3's axis.
        aliases: Labels of added methods that turned out to be this row.
        before: With seed 0, the run that a second stage begins with.
    """

    label: str
    run: Run
    setting: Setting
    work: float = 1.0
    best_epoch: bool = False
    in_paper: bool = True
    threshold: float | None = None
    aliases: tuple[str, ...] = ()
    before: Run | None = None

    @property
    def num_exits(self) -> int:
        """K, 1 for the last exit alone."""
        return 1 if self.run.network == self.setting.last_only else self.setting.exits

    @property
    def network(self) -> Spec:
        """The network, for a second stage that of its first."""
        return (self.before or self.run).network

    def with_seed(self, seed: int) -> Run:
        """The configuration of a seed."""
        run, before = _seeded(self.run, seed), self.before_with_seed(seed)
        return run if before is None else second_stage(run, run_name(before))

    def before_with_seed(self, seed: int) -> Run | None:
        """The run that the one of this seed begins with, if any."""
        return None if self.before is None else _seeded(self.before, seed)

    def is_called(self, labels: Sequence[str]) -> bool:
        """Whether one of these is its name."""
        return not {self.label, *self.aliases}.isdisjoint(labels)


def _seeded(run: Run, seed: int) -> Run:
    return dataclasses.replace(run, training=dataclasses.replace(run.training, seed=seed))


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper at a scale.

    Attributes:
        name: What the command line calls it.
        title: What it shows, and on which of the paper's networks.
        rows: In the order of the paper.
        shows: Which figures it is about, besides accuracy.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    scale: Scale
    shows: Shows = "exits"

    def row(self, label: str) -> Row | None:
        """The row of this name."""
        return next((row for row in self.rows if row.label == label), None)

    def with_methods(self, extra: Sequence[Method]) -> "Experiment":
        """With a row more for each method, trained like the first row but for the method.

        A method that is a row already stays that row; two rows with one label get longer labels.

        Raises:
            UsageError: Two methods with one label.
        """
        if self.shows == "threshold":
            return self  # its rows are thresholds, not methods
        first = self.rows[0]
        network, data = first.network, first.run.data.source
        rows = self.rows
        for method in extra:
            new = _row(method, first.setting, network=network, data=data, holdout=first.run.data.holdout)
            rows = _joined(rows, dataclasses.replace(new, in_paper=False))
        return dataclasses.replace(self, rows=rows)


def _joined(rows: tuple[Row, ...], new: Row) -> tuple[Row, ...]:
    """With the row `new`. Figures are kept by label, so that no two rows may share one."""
    label, wanted = new.label, run_hash(new.run)
    if wanted in (run_hash(row.run) for row in rows):
        return tuple(
            dataclasses.replace(row, aliases=(*row.aliases, label)) if run_hash(row.run) == wanted else row
            for row in rows
        )
    labels = [row.label for row in rows]
    if label in labels:
        new = dataclasses.replace(new, label=f"{label} (--also)")
        if new.label in labels:
            raise UsageError(f"Two of the added methods are called {label!r}, and differ. Give one another label.")
    return (*rows, new)


def _row(
    method: Method,
    setting: Setting,
    *,
    network: Spec | None = None,
    data: Spec | None = None,
    holdout: int | None = 0,
    in_paper: bool = True,
) -> Row:
    run = method.run(setting, network=network, data=data, holdout=holdout)
    first = method.after
    before = None if first is None else first.run(setting, network=network, data=data, holdout=holdout)
    return Row(method.label, run, setting, method.work(setting.exits), in_paper=in_paper, before=before)


_WPNS = (methods.WPN_OWN, methods.WPN_LARGER)  # rivals at their best, beside the row that has the setting's recipe


def _table(
    name: str,
    title: str,
    scale: Scale,
    of: Of,
    rows: Mapping[str, Method],
    beside: Sequence[Method] = (),
    shows: Shows = "exits",
) -> Experiment:
    """A table of the paper whose rows are methods, and after them those that it lacks."""
    chosen = [_row(dataclasses.replace(method, label=label), scale[of]) for label, method in rows.items()]
    more = [_row(method, scale[of], in_paper=False) for method in beside]
    return Experiment(name, title, (*chosen, *more), scale, shows)


def table1(scale: Scale) -> Experiment:
    """Anytime prediction of MSDNet-7 on CIFAR-100, five seeds.

    Expect the mean over exits 70.107 (MSDNet), 69.988 (WPN), 70.048 (damping), 70.394 (power-sqrt), 71.256 (dynamic).
    Not in the paper: WPN with its authors' recipe and with twice the batch, and damping whose λ rises with depth.
    """
    rows = {
        "MSDNet": methods.CROSS_ENTROPY,
        "WPN": methods.WPN,
        "Damping": methods.DAMPING,
        "+ Power-sqrt": methods.POWER_SQRT,
        "+ Dynamic": methods.DYNAMIC,
    }
    beside = [*_WPNS, dataclasses.replace(methods.BY_DEPTH, label="Damping, λ rising with depth")]
    return _table("table1", "Anytime prediction, MSDNet-7", scale, "cifar100", rows, beside)


def table2(scale: Scale) -> Experiment:
    """Anytime prediction of MSDNet-5 on ImageNet.

    Expect, summed over the exits, gains over MSDNet of 1.39 (WPN), 2.58 (DFS), 2.46 (power-sqrt) and 3.63 (dynamic).
    The paper copies the rows of WPN and DFS from their authors, who trained otherwise; here these rows have one recipe.
    Not in the paper: both with their authors' recipes, WPN with twice the batch, and dynamic weights normalised over
    the batch, as Han et al. do on ImageNet.
    """
    rows = {
        "MSDNet": methods.CROSS_ENTROPY,
        "WPN": methods.WPN,
        "DFS": methods.DFS,
        "Power-sqrt": methods.POWER_SQRT,
        "+ Dynamic": methods.DYNAMIC,
    }
    title = "Anytime prediction, the ImageNet setting: MSDNet-5"
    beside = [*_WPNS, methods.DFS_OWN, dataclasses.replace(methods.OVER_BATCH, label="+ Dynamic, over the batch (mat)")]
    return _table("table2", title, scale, "imagenet", rows, beside)


def table3(scale: Scale) -> Experiment:
    """The last exit alone on MSDNet-7's trunk, CIFAR-100.

    Expect 75.98 (cross-entropy, the epoch that is best on test, as the paper's row is), 76.41 (threshold), 76.63
    (damping). The paper does not say which threshold: 0.95 here, above which Figure 3's text calls gradients harmful.
    """
    setting = scale["cifar100"]
    base = _single(setting, methods.CROSS_ENTROPY, "MSDNet last only (last epoch)", on_test=True)
    rows = (
        dataclasses.replace(base, label="MSDNet last only (best epoch)", best_epoch=True),
        dataclasses.replace(base, in_paper=False),
        _single(setting, _discarding(0.95), "Threshold last only"),
        _single(setting, methods.DAMPING, "Damping loss last only"),
    )
    return Experiment("table3", "The last exit alone", rows, scale, "last-exit")


def table4(scale: Scale) -> Experiment:
    """Anytime prediction of MSDNet-7 on CIFAR-10, lambda 0.075.

    Expect the mean over exits 92.41 (MSDNet), 91.89 (WPN), 92.52 (power-sqrt), 92.51 (dynamic). Not in the paper: WPN
    with its authors' recipe and with twice the batch.
    """
    rows = {
        "MSDNet": methods.CROSS_ENTROPY,
        "Meta-learning Early Exiting (WPN)": methods.WPN,
        "+ Power-sqrt": methods.POWER_SQRT,
        "+ Dynamic training": methods.DYNAMIC,
    }
    title = "Anytime prediction, the CIFAR-10 setting: MSDNet-7, λ = 0.075"
    return _table("table4", title, scale, "cifar10", rows, _WPNS)


def table5(scale: Scale) -> Experiment:
    """What the damping neuron says, per exit on test and on training images, MSDNet-7 on CIFAR-100.

    Expect F[N+1] on test to rise with depth (0.006 to 0.071 under damping), about half of that under power-sqrt, and
    to fall where the weights carry gradient. On training images the propositions say 0.005 and 0.0019.
    """
    rows = {
        "Damping loss": methods.DAMPING,
        "+ Power-sqrt": methods.POWER_SQRT,
        "+ Dynamic training": methods.DYNAMIC,
        "Dynamic training with gradient": methods.WITH_GRADIENT,
    }
    return _table("table5", "The damping neuron, MSDNet-7", scale, "cifar100", rows, shows="damping")


def table6(scale: Scale) -> Experiment:
    """Anytime prediction of RANet-6 on CIFAR-100.

    Expect the mean over exits 69.96 (RANet), 70.03 (WPN), 70.77 (power-sqrt), 71.22 (dynamic). Not in the paper: WPN
    with its authors' recipe and with twice the batch.
    """
    rows = {
        "RANet": methods.CROSS_ENTROPY,
        "WPN": methods.WPN,
        "Ours (Power-sqrt)": methods.POWER_SQRT,
        "+ Dynamic training": methods.DYNAMIC,
    }
    return _table("table6", "Anytime prediction, RANet-6", scale, "ranet", rows, _WPNS)


LAMBDAS = (0.005, 0.025, 0.05, 0.075)


def table7(scale: Scale) -> Experiment:
    """Sensitivity to lambda of damping and power-sqrt, MSDNet-7 on CIFAR-100, five seeds.

    Expect the mean over exits 70.05, 70.05, 69.79, 69.90 (damping) and 70.39, 70.51, 70.48, 70.50 (power-sqrt).
    """
    setting = scale["cifar100"]
    rows = [
        Row(f"{name} {strength}", setting.run(Spec(name, {"strength": strength})), setting)
        for name in ("damping", "power-sqrt")
        for strength in LAMBDAS
    ]
    return Experiment("table7", "Sensitivity to λ, MSDNet-7", tuple(rows), scale)


def table8(scale: Scale) -> Experiment:
    """Label smoothing against power-sqrt, MSDNet-7 on CIFAR-100.

    Expect the mean over exits 70.12 (MSDNet), 69.84 (label smoothing; 0.1 here, the paper does not say), 70.67.
    """
    rows = {
        "MSDNet": methods.CROSS_ENTROPY,
        "Label smoothing": methods.LABEL_SMOOTHING,
        "Power-sqrt": methods.POWER_SQRT,
    }
    return _table("table8", "Label smoothing, MSDNet-7", scale, "cifar100", rows)


THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


def figure3(scale: Scale) -> Experiment:
    """Gradients discarded above a softmax, the last exit alone on MSDNet-7's trunk, CIFAR-100.

    Expect accuracy to rise up to 80 %, to stay about the same up to 95 % and to fall at 100 %, while the loss the
    network converges to falls all the way. The paper drew these points and never printed them.
    """
    setting = scale["cifar100"]
    rows = []
    for threshold in THRESHOLDS:
        method, label = _discarding(threshold), f"{threshold:.0%}".replace("%", " %")
        if threshold == 1:  # nothing is discarded: Table 3's plain run
            method = methods.CROSS_ENTROPY
        row = _single(setting, method, label, on_test=threshold == 1)
        rows.append(dataclasses.replace(row, in_paper=False, threshold=threshold))
    return Experiment("figure3", "Discarded gradients, the last exit alone", tuple(rows), scale, "threshold")


def figure4(scale: Scale) -> Experiment:
    """Budgeted classification on the ImageNet setting; thresholds from half of the held-out images.

    Expect MSDNet and WPN close together and the paper's method above both. The paper drew its curves and never printed
    them. Not in the paper: WPN with its authors' recipe and with twice the batch; all methods are in league-imagenet.
    """
    shown = (methods.CROSS_ENTROPY, methods.WPN, *_WPNS, methods.POWER_SQRT, methods.DYNAMIC)
    rows = tuple(_held_out(method, scale["imagenet"]) for method in shown)
    return Experiment("figure4", "Dynamic inference, the ImageNet setting: MSDNet-5", rows, scale, "budgeted")


def league(scale: Scale) -> Experiment:
    """Every method in Table 1's setting: not in the paper, which compares with WPN alone there."""
    rows = [_row(method, scale["cifar100"], in_paper=False) for method in methods.LEAGUE]
    return Experiment("league", "All methods, MSDNet-7", tuple(rows), scale, "groups")


def league_imagenet(scale: Scale) -> Experiment:
    """Every method in Figure 4's setting, and dynamic weights normalised over the batch: not in the paper."""
    rows = tuple(_held_out(method, scale["imagenet"]) for method in (*methods.LEAGUE, methods.OVER_BATCH))
    return Experiment("league-imagenet", "All methods, the ImageNet setting: MSDNet-5", rows, scale, "budgeted")


def pilot(scale: Scale) -> Experiment:
    """What the study's methods could be trained with, on held-out images alone: not in the paper.

    Of each method that candidate is chosen which is best on `search`, averaged over exits and seeds, at the last epoch.
    """
    setting, candidates = scale["cifar100"], [each for of in deciding.CANDIDATES.values() for each in of]
    rows = [_held_out(method, setting) for method in candidates]
    return Experiment("pilot", "Pilot of our own study, MSDNet with 7 exits", tuple(rows), scale, "pilot")


def study(scale: Scale) -> Experiment:
    """Our own comparison of methods as the pilot chose them, paired by seed: not in the paper."""
    setting, rows = scale["cifar100"], []
    for family, label in scale.chosen.items():
        method = next(each for each in deciding.CANDIDATES[family] if each.label == label)
        row = _held_out(method, setting)
        training = dataclasses.replace(row.run.training, xray=WATCHED)
        rows.append(dataclasses.replace(row, run=dataclasses.replace(row.run, training=training), aliases=(family,)))
    return Experiment("study", "Our own study, MSDNet with 7 exits", tuple(rows), scale, "study")


WATCHED = 256  # images whose gradients the study writes down


def _held_out(method: Method, setting: Setting) -> Row:
    return _row(method, setting, holdout=setting.held_out, data=_with_held_out(setting), in_paper=False)


EXPERIMENTS: Mapping[str, Callable[[Scale], Experiment]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(table1, table2, table3, table4, table5, table6, table7, table8, figure3, figure4, league, league_imagenet),
        *(pilot, study),
    )
}
OWN_STUDY = ("pilot", "study")  # not among all: the one decides on the other
ALL = "all"


def experiments(names: Sequence[str], scale: Scale) -> list[Experiment]:
    """The experiments of these names at a scale, each once, in the order of the paper; `all` for every one but our own
    study and its pilot.

    Raises:
        UsageError: An unknown name, or none.
    """
    known = [*EXPERIMENTS, ALL]
    for name in names:
        if name not in known:
            raise UsageError(f"There is no table or figure {name!r}.{did_you_mean(name, known)}")
    if not names:
        raise UsageError(f"Say what to reproduce: {', '.join(known)}.")
    return [
        make(scale) for name, make in EXPERIMENTS.items() if name in names or (ALL in names and name not in OWN_STUDY)
    ]


def _discarding(threshold: float) -> Method:
    return Method(f"threshold {threshold}", methods.plainly("discard-threshold", threshold=threshold))


def _single(setting: Setting, method: Method, label: str, *, on_test: bool = False) -> Row:
    """A row of the last exit alone; `on_test`: watched on test after every epoch, which changes nothing trained."""
    if setting.last_only is None:
        raise UsageError(
            f"The setting of {setting.network} has no network with the last exit alone, which this experiment needs. "
            "Say one in its `last_only`."
        )
    data, holdout = (watched(setting.data), None) if on_test else (None, 0)
    run = method.run(setting, network=setting.last_only, data=data, holdout=holdout)
    return Row(label, run, setting)


def _with_held_out(setting: Setting) -> Spec:
    """Where a limit is set, so many images more that those held out are not missing in training."""
    limit = setting.data.args.get("limit")
    if limit is None:
        return setting.data
    return Spec(setting.data.name, {**setting.data.args, "limit": limit + setting.held_out})
