"""`offramp xray`: what the gradients of a run did, from the record that its training left."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.commands.options import Computes, OnRun, in_threads
from offramp.errors import UsageError
from offramp.files import RunConfig, RunFolder
from offramp.show.terminal import print_result
from offramp.storage import DamagedFileError, load_tensors, weights_hash, write_files

if TYPE_CHECKING:
    from offramp.data import Parts
    from offramp.evaluation.error_detection import ErrorDetection
    from offramp.results.xray import XrayReport


@dataclass(frozen=True, kw_only=True)
class XrayOptions(OnRun, Computes):
    """See which gradients a training needed.

    Those of the images that it watched (offramp train --xray 256). Of each exit over time: which gradients are
    needed, damped or reversed, where the push comes from, what was learned when, with pictures; and whether the
    damping value knows wrong answers on test. Writes RUN/xray.html. A run that is not finished is shown as far as
    it is.
    """

    def main(self) -> None:
        report = xray(self)
        from offramp.show.figures import note_missing
        from offramp.show.tables import xray_table

        why = report.no_error_detection
        remark = None if why is None else f"The damping value against correctness on test: {why}"
        print_result(report.to_json, lambda: xray_table(report), report.written, as_json=self.json, remark=remark)
        note_missing("xray.html")


@in_threads
def xray(options: XrayOptions, *, parts: "Parts | None" = None) -> "XrayReport":
    """Look at what the gradients of a run's watched training images did, and write `xray.html` into its folder.

    The run need not be finished, but must have written something down.
    """
    from offramp.commands.open_run import parts_of
    from offramp.commands.sheet import sheet
    from offramp.files.xray import Xray
    from offramp.results.xray import XrayReport
    from offramp.show import figures
    from offramp.show.xray.page import xray_page

    folder = RunFolder(options.run, options.allow_code)
    config = folder.read_config()
    if not folder.xray.is_file():
        raise UsageError(_why_nothing(folder, config))
    error_detection, no_error_detection = _error_detection(folder)
    report = XrayReport.of(Xray.load(folder.xray), folder, config, error_detection, no_error_detection)
    if not figures.available():
        return report
    images, no_images = None, None
    try:
        train = parts_of(folder, config, options.root, parts).train
        images = sheet((report.shallow_first, report.deep_first, report.last), train)
    except UsageError as error:  # the rest of the page needs no pictures
        no_images = str(error)
    page = {folder.xray_page: xray_page(report, images, no_images).encode()}
    return dataclasses.replace(report, written=write_files(page))


def _why_nothing(folder: RunFolder, config: RunConfig) -> str:
    if config.training.xray:
        return f"{folder.path} has not finished an epoch of which it saw every watched image; wait, or continue it."
    return (
        f"{folder.path} wrote nothing down of its gradients. Train with --xray 256 (in Python TrainConfig(xray=256)): "
        "it watches that many training images."
    )


def _error_detection(folder: RunFolder) -> "tuple[tuple[ErrorDetection, ...] | None, str | None]":
    """What the damping value knows of wrong answers on test; where that cannot be said, why."""
    from offramp.evaluation import Record
    from offramp.evaluation.error_detection import error_detection

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
    return (error_detection(test), None) if test.damping else (None, "The network has no damping neuron.")
