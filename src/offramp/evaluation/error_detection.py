"""Does the damping neuron know when its exit is wrong? Its value against right and wrong answers, on a record.

K exits, S images, N classes.
"""

from dataclasses import dataclass

from scipy.stats import mannwhitneyu
from torch import Tensor

from offramp.errors import UsageError
from offramp.evaluation.record import Record
from offramp.policy import SOFTMAX

PARTS = 10  # equal parts of the images, by F[N+1]


@dataclass(frozen=True)
class ErrorDetection:
    """One exit's damping value against its answers.

    Attributes:
        right: Median of F[N+1] over the images answered rightly; None where there is none.
        wrong: The same of those answered wrongly.
        ranking: Chance that F[N+1] is larger for an image answered wrongly than for one answered rightly (the area
            under the ROC curve; 0.5: it tells nothing); None where all answers are right, or all wrong.
        confidence_ranking: The same of the largest class probability, which should be smaller.
        values: Median of F[N+1] in each tenth of the images, from the smallest values to the largest.
        top1: Accuracy in each tenth, in percent.
    """

    right: float | None
    wrong: float | None
    ranking: float | None
    confidence_ranking: float | None
    values: tuple[float, ...]
    top1: tuple[float, ...]


def error_detection(record: Record) -> tuple[ErrorDetection, ...]:
    """The damping value against the answers, of each exit.

    Raises:
        UsageError: A network without the damping neuron.
    """
    if not record.damping:
        raise UsageError("The network has no damping neuron, so there is no damping value.")
    confidence_KS, answers_KS = record.read(SOFTMAX)
    neuron_KS = record.logits_KSC.double().log_softmax(-1)[..., -1]
    return tuple(
        _error_detection(neuron_S, answers_S == record.targets_S, confidence_S)
        for neuron_S, answers_S, confidence_S in zip(neuron_KS, answers_KS, confidence_KS, strict=True)
    )


def _error_detection(neuron_S: Tensor, right_S: Tensor, confidence_S: Tensor) -> ErrorDetection:
    """Of log F[N+1], which ranks images as F[N+1] does and does not become 0."""
    parts = [part for part in neuron_S.argsort(stable=True).tensor_split(PARTS) if len(part)]
    return ErrorDetection(
        right=_median(neuron_S[right_S]),
        wrong=_median(neuron_S[~right_S]),
        ranking=_ranking(neuron_S, ~right_S),
        confidence_ranking=_ranking(-confidence_S, ~right_S),
        values=tuple(neuron_S[part].quantile(0.5).exp().item() for part in parts),
        top1=tuple(100 * right_S[part].double().mean().item() for part in parts),
    )


def _median(logs_S: Tensor) -> float | None:
    return logs_S.quantile(0.5).exp().item() if len(logs_S) else None


def _ranking(values_S: Tensor, positive_S: Tensor) -> float | None:
    """Chance that a positive has the larger value, ties counting half (Mann and Whitney's U)."""
    positives, negatives = values_S[positive_S].numpy(), values_S[~positive_S].numpy()
    if not len(positives) or not len(negatives):
        return None
    u = mannwhitneyu(positives, negatives, method="asymptotic").statistic  # its p-value is of no use here
    return float(u / (len(positives) * len(negatives)))
