"""Calibration: do images that a network is c percent sure about turn out right c percent of the time?

S images. Confidence is the probability of the predicted class; with the damping neuron's share left out (reading A9(b))
it can lie below 1/N.
"""

from dataclasses import dataclass

from torch import Tensor

from offramp.errors import UsageError

BINS = 15  # equal width over [0, 1] (Guo et al., ICML 2017)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: images sorted into bins of equal width by confidence.

    Attributes:
        images: Images per bin; they sum to S.
        confidence: Mean confidence per bin, in [0, 1]; None where a bin is empty.
        accuracy: Share of right answers per bin, in [0, 1]; None where a bin is empty.
    """

    images: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: the mean over images of |accuracy - confidence| of their bin."""
        gaps = (
            n * abs(right - sure)
            for n, sure, right in zip(self.images, self.confidence, self.accuracy, strict=True)
            if sure is not None and right is not None
        )
        return sum(gaps) / sum(self.images)


def reliability(confidence_S: Tensor, correct_S: Tensor, bins: int = BINS) -> Reliability:
    """The reliability diagram of confidences in [0, 1] and right (True) or wrong answers.

    Bin b holds the confidences in (b/bins, (b + 1)/bins]; confidence 0 goes to the first.
    """
    if confidence_S.shape != correct_S.shape or not len(confidence_S):
        raise UsageError(
            f"A reliability diagram needs one answer per confidence, at least one; found {list(confidence_S.shape)} "
            f"confidences and {list(correct_S.shape)} answers."
        )
    if not ((confidence_S >= 0) & (confidence_S <= 1)).all():
        raise UsageError("Confidences are probabilities, in [0, 1]; some lie outside or are not finite.")
    sure_S, right_S = confidence_S.double(), correct_S.double()
    bin_S = (sure_S * bins).ceil().long().sub(1).clamp(0, bins - 1)
    images = bin_S.bincount(minlength=bins)
    sure, right = (bin_S.bincount(weights=values, minlength=bins) / images for values in (sure_S, right_S))
    return Reliability(tuple(images.tolist()), _filled(sure, images), _filled(right, images))


def _filled(means: Tensor, images: Tensor) -> tuple[float | None, ...]:
    return tuple(mean if n else None for mean, n in zip(means.tolist(), images.tolist(), strict=True))
