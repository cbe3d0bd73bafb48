"""What is read again of a run's `evaluation.json`."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from offramp.errors import OfframpError
from offramp.files.folder import RunFolder
from offramp.json_files import read
from offramp.storage import load_tensors, weights_hash

FORMAT = 1  # one more key is no new format
Percent = Annotated[float, Meta(ge=0, le=100)]  # never NaN, as a loss may be


@dataclass(frozen=True)
class ExitFiguresFile:
    """An exit's figures on some images."""

    top1: Percent
    nll: float
    ece: float
    damping: float | None


@dataclass(frozen=True)
class ExitFile(ExitFiguresFile):
    """An exit's figures on test images, and on training images with test transforms."""

    operations: int
    parameters: int | None = None
    train: ExitFiguresFile | None = None


@dataclass(frozen=True)
class PointFile:
    """Accuracy, and mean operations per image, under thresholds."""

    operations: float
    accuracy: float


@dataclass(frozen=True)
class DynamicFile:
    """What thresholds do: the published curve."""

    published: tuple[PointFile, ...]


@dataclass(frozen=True)
class EvaluationFile:
    """What is read again of `evaluation.json`; older ones have less beside it."""

    format: int
    weights: str
    data: str
    fingerprint: str
    renormalised: bool
    mean_top1: float
    exits: Annotated[tuple[ExitFile, ...], Meta(min_length=1)]
    images: int | None = None
    dynamic: DynamicFile | None = None


def current(folder: RunFolder) -> EvaluationFile | None:
    """The run's `evaluation.json` if it is of the weights that stand there now and of default settings; else None."""
    if not folder.evaluation.is_file():
        return None
    try:
        kept = read(folder.evaluation, EvaluationFile)
    except OfframpError:  # damaged: nothing is lost, it is made again from the record
        return None
    if kept.format != FORMAT or kept.renormalised:
        return None
    return kept if kept.weights == weights_hash(load_tensors(folder.weights)[0]) else None
