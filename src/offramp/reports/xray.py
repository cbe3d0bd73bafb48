"""What the gradients of a run did, from the record that its training left: a page in its folder.

E epochs, K exits, W watched images.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.config import Spec
from offramp.data import Parts
from offramp.errors import UsageError
from offramp.evaluation import Record
from offramp.evaluation.telling import Telling, telling
from offramp.evaluation.xray import BANDS, NEEDED, STATES, Xray
from offramp.reports import figures, xray_figures
from offramp.reports.labels import short_name, summary
from offramp.reports.loading import check_trained_on, parts_of
from offramp.reports.page import inline_svg, page
from offramp.reports.sheet import Sheet, sheet
from offramp.runs import RunFolder
from offramp.storage import DamagedFileError, load_tensors, weights_hash, write_atomically

SHOWN = 10  # images a row


@dataclass(frozen=True)
class Watched:
    """A training image to look at.

    Attributes:
        index: Its position in the official training set.
        target: Its class.
        learned: Epoch from which on each exit was right about it; 0 for never.
    """

    index: int
    target: int
    learned: tuple[int, ...]


@dataclass(frozen=True)
class ExitXray:
    """One exit in the last epoch.

    Attributes:
        shares: Of images whose gradient is needed, damped, reversed; they add up to 1.
        true: Mean of F[y].
        gamma: Median of gamma; None where the objective has none.
        weight: Mean of w; None where there is none.
        learned: Share of images it is right about.
        learned_by: Median epoch from which on it was right about these; None where there are none.
    """

    shares: tuple[float, ...]
    true: float
    gamma: float | None
    weight: float | None
    learned: float
    learned_by: int | None


@dataclass(frozen=True)
class XrayReport:
    """What the record says.

    Attributes:
        run: The run's folder.
        config: What its `config.json` holds.
        record: The record.
        exits: Every exit in the last epoch.
        shallow_first: Images that the exits of the first half learned earlier than those of the second, largest
            difference of the mean epochs first; never counts as one after the last.
        deep_first: The other way round.
        last: Images that all exits together learned last, or never.
        telling: The damping value against the answers on test; None where that cannot be said.
        no_telling: Why not; None where it can.
        written: The page, if matplotlib is installed.
    """

    run: RunFolder
    config: dict[str, Any]
    record: Xray
    exits: tuple[ExitXray, ...]
    shallow_first: tuple[Watched, ...]
    deep_first: tuple[Watched, ...]
    last: tuple[Watched, ...]
    telling: tuple[Telling, ...] | None
    no_telling: str | None
    written: tuple[Path, ...] = ()

    @property
    def epoch(self) -> int:
        """The last one recorded."""
        return int(self.record.epochs_E[-1])

    def to_json(self) -> dict[str, Any]:
        """For scripts: each exit over time and at the end."""
        shares_3EK = self.record.shares()
        return {
            "images": len(self.record.indices_W),
            "split": self.record.split,
            "epochs": self.record.epochs_E.tolist(),
            "shares": {name: shares_EK.tolist() for name, shares_EK in zip(STATES, shares_3EK, strict=True)},
            "exits": [dataclasses.asdict(exit) for exit in self.exits],
            "telling": None if self.telling is None else [dataclasses.asdict(exit) for exit in self.telling],
            "no_telling": self.no_telling,
        }


def xray(
    run: str | Path, *, parts: Parts | None = None, root: str | None = None, allow_code: Sequence[str] = ()
) -> XrayReport:
    """Look at what the gradients of a run's watched training images did, and write `xray.html` into its folder.

    Args:
        run: The run's folder; it need not be finished.
        parts: The data, for pictures, where the run was fit from Python with data made by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        allow_code: Packages whose code the run may name: see `offramp.load`.

    Raises:
        UsageError: No run, or one that wrote nothing down.
    """
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    if not folder.xray.is_file():
        raise UsageError(_why_nothing(folder, config))
    record = Xray.load(folder.xray)
    told, why_not = _telling(folder)
    shallow_first, deep_first, last = _picked(record)
    report = XrayReport(
        run=folder,
        config=config,
        record=record,
        exits=_exits(record),
        shallow_first=shallow_first,
        deep_first=deep_first,
        last=last,
        telling=told,
        no_telling=why_not,
    )
    if not figures.available():
        return report
    images, no_images = _pictures(report, parts, root)
    write_atomically(folder.xray_page, _page(report, images, no_images).encode())
    return dataclasses.replace(report, written=(folder.xray_page,))


def _why_nothing(folder: RunFolder, config: dict[str, Any]) -> str:
    if (config.get("training") or {}).get("xray"):
        return f"{folder.path} has not finished an epoch of which it saw every watched image; wait, or continue it."
    return (
        f"{folder.path} wrote nothing down of its gradients. Train with --xray 256 (in Python TrainConfig(xray=256)): "
        "it watches that many training images."
    )


def _telling(folder: RunFolder) -> tuple[tuple[Telling, ...] | None, str | None]:
    how = folder.command("evaluate")
    path = folder.record("test")
    if not folder.weights.is_file():
        return None, f"The run is not finished. When it is: {how}"
    if not path.is_file():
        return None, f"The test set has not been recorded. That does: {how}"
    try:
        test = Record.load(path)
    except DamagedFileError:
        return None, f"The record of the test set is damaged. A new one: {how}"
    if test.weights != weights_hash(load_tensors(folder.weights)[0]):
        return None, f"The record of the test set is of other weights. A new one: {how}"
    return (telling(test), None) if test.damping else (None, "The network has no damping neuron.")


def _exits(record: Xray) -> tuple[ExitXray, ...]:
    shares_3K, learned_KW = record.shares()[:, -1], record.learned()
    true_KW, gamma_EKW, weight_EKW = record.certainty()[-1], record.gamma_EKW, record.weight_EKW
    exits = []
    for k, learned_W in enumerate(learned_KW):
        known = learned_W[learned_W > 0]
        exits.append(
            ExitXray(
                shares=tuple(shares_3K[:, k].tolist()),
                true=true_KW[k].mean().item(),
                gamma=None if gamma_EKW is None else gamma_EKW[-1, k].float().quantile(0.5).item(),
                weight=None if weight_EKW is None else weight_EKW[-1, k].float().mean().item(),
                learned=len(known) / len(learned_W),
                learned_by=int(known.median()) if len(known) else None,
            )
        )
    return tuple(exits)


def _picked(record: Xray) -> tuple[tuple[Watched, ...], ...]:
    """Images that shallow exits learned long before deep ones, those of the other kind, and the last ones."""
    learned_KW, half = record.learned(), record.num_exits // 2
    epoch_KW = learned_KW.double().masked_fill(learned_KW == 0, float(record.epochs_E[-1]) + 1)
    if not half:
        return (), (), _largest(record, epoch_KW[0])
    lead_W = epoch_KW[-half:].mean(0) - epoch_KW[:half].mean(0)
    return _largest(record, lead_W), _largest(record, -lead_W), _largest(record, epoch_KW.mean(0))


def _largest(record: Xray, values_W: Tensor) -> tuple[Watched, ...]:
    """The images with the largest values above 0; of equal ones those that come first."""
    order = values_W.argsort(descending=True, stable=True)[:SHOWN]
    learned_WK = record.learned().T
    return tuple(
        Watched(int(record.indices_W[w]), int(record.targets_W[w]), tuple(learned_WK[w].tolist()))
        for w in order.tolist()
        if values_W[w] > 0
    )


def _pictures(report: XrayReport, parts: Parts | None, root: str | None) -> tuple[Sheet | None, str | None]:
    """The picked images; where the data are not to be had, why. The rest of the page needs none."""
    try:
        parts = parts or parts_of(report.run, report.config, root, "offramp.reports.xray")
        check_trained_on(parts, report.run, report.config)
    except UsageError as error:
        return None, str(error)
    return sheet((report.shallow_first, report.deep_first, report.last), parts.train), None


def _page(report: XrayReport, images: Sheet | None, no_images: str | None) -> str:
    config, record = report.config, report.record
    with figures.style():
        plots = {name: inline_svg(figure, name) for name, figure in xray_figures.draw(record, report.telling).items()}
    data = "data of your own" if config["data"] is None else str(Spec.from_json(config["data"]["source"]))
    network = "a network of your own" if config["network"] is None else short_name(config["network"])
    rule = config.get("rule")
    return page(
        "xray.html.j2",
        title=f"The gradients of {short_name(config['objective'])} · {network} · {data}",
        objective=summary(config["objective"]),
        rule=None if rule is None or short_name(rule) == "Standard" else summary(rule),
        report=report,
        record=record,
        states=STATES,
        needed=NEEDED,
        bands=BANDS,
        together=xray_figures.epochs_a_step(len(record.epochs_E)),
        plots=plots,
        rows=_rows(report, images),
        no_images=no_images,
        shown_as=None if images is None else images.shown_as,
    )


def _rows(report: XrayReport, images: Sheet | None) -> list[dict[str, Any]]:
    """What the template shows of the picked images, a row each kind; rows without any are left out."""
    K = report.record.num_exits
    half = K // 2  # an exit in the middle belongs to neither
    early, late = ("exit 1", f"exit {K}") if half == 1 else (f"exits 1–{half}", f"exits {K - half + 1}–{K}")
    kinds = (
        (f"Learned by {early} first, by {late} later", report.shallow_first),
        (f"Learned by {late} first, by {early} later", report.deep_first),
        ("Learned last, all exits together", report.last),
    )
    pictures = [[""] * len(row) for _, row in kinds] if images is None else images.rows
    return [
        {
            "title": title,
            "tiles": [
                {
                    "image": image,
                    "index": one.index,
                    "name": report.record.class_names[one.target],
                    "learned": " ".join(str(epoch) if epoch else "–" for epoch in one.learned),
                }
                for one, image in zip(row, addresses, strict=True)
            ],
        }
        for (title, row), addresses in zip(kinds, pictures, strict=True)
        if row
    ]
