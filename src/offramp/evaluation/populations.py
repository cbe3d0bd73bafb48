"""Populations of images whose true risks are known, to audit procedures that promise a risk.

A population is M *kinds* of images, each with a probability; what a kind does under each of J candidate thresholds is
certain. A set of n images is then a multinomial draw, counts `[M]` say all there is to say about it, and true risks are
sums. K exits besides the last; an image leaves at the first of them whose confidence reaches the threshold, which is
one for all exits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from offramp.choices import Loss
from offramp.errors import UsageError
from offramp.evaluation.bounds import FloatArray, IntArray
from offramp.evaluation.promises import BoolArray, Events, LossCounts, events

MOST = 1 / 6  # the largest risk that every population here has room for: `up_and_down` is the narrowest
BINS = 100  # confidences that a smooth population has


@dataclass(frozen=True, eq=False)
class Population:
    """Kinds of images, and what they do under each candidate.

    Attributes:
        name: In words.
        share_M: Probability of each kind; they sum to 1.
        confidence_KM: Of each early exit.
        right_KM: Whether each early exit's answer is right.
        true_KM: Probability that each early exit gives the true class (what conformal methods calibrate on).
        full_M: Whether the last exit's answer is right.
        thresholds_J: Candidates, the one that holds most images back first.

    Raises:
        UsageError: A kind with a probability below 0: there is no such population for so large a risk.
    """

    name: str
    share_M: FloatArray
    confidence_KM: FloatArray
    right_KM: BoolArray
    true_KM: FloatArray
    full_M: BoolArray
    thresholds_J: FloatArray

    def __post_init__(self) -> None:
        if self.share_M.min() < 0:
            raise UsageError(
                f"There is no population {self.name!r} for so large a risk; all of them can be made for risks up to "
                f"{math.floor(1000 * MOST) / 1000:g}."
            )

    @cached_property
    def exits_taken(self) -> IntArray:
        """The exit `[M, J]` that each kind takes under each candidate; K, the number of early ones, for the last."""
        leaves_KMJ = self.confidence_KM[:, :, None] >= self.thresholds_J
        return np.where(leaves_KMJ.any(0), leaves_KMJ.argmax(0), len(self.confidence_KM))

    def events(self, loss: Loss) -> Events:
        """Which kinds are lost, gained and counted under each candidate: masks `[M, J]`."""
        answers_MK = np.concatenate([self.right_KM, self.full_M[None]]).T
        right_MJ = np.take_along_axis(answers_MK, self.exits_taken, axis=1)
        left_MJ = self.exits_taken < len(self.confidence_KM)
        full_MJ = np.broadcast_to(self.full_M[:, None], left_MJ.shape)
        return events(loss, left_MJ, right_MJ, full_MJ)

    def risks(self, loss: Loss) -> FloatArray:
        """The true risk `[J]` of every candidate; 0 where no image is counted."""
        lost_J, gained_J, counted_J = (self.share_M @ happens_MJ for happens_MJ in self.events(loss))
        return np.asarray((lost_J - gained_J) / np.where(counted_J > 0, counted_J, 1))

    def leaving(self) -> FloatArray:
        """The share `[J]` of images that leave early under each candidate."""
        return np.asarray(self.share_M @ (self.exits_taken < len(self.confidence_KM)))

    def draw(self, images: int, trials: int, rng: np.random.Generator) -> IntArray:
        """`trials` independent sets of `images` images, as counts `[T, M]`."""
        return rng.multinomial(images, self.share_M, size=trials)


def tally(happens: Events, counts_TM: IntArray) -> LossCounts:
    """The counts `[T, J]` of each set under each candidate."""
    # Products of floats are fast and, below 2^24, exact.
    counts = counts_TM.astype(np.float32)
    return LossCounts(*((counts @ one_MJ.astype(np.float32)).astype(np.int64) for one_MJ in happens))


Make = Callable[[FloatArray, float], Population]


def _smooth(
    name: str,
    thresholds_J: FloatArray,
    density: Callable[[FloatArray], FloatArray],
    right: Callable[[FloatArray], FloatArray],
    full_if_right: float,
    full_if_wrong: float,
) -> Population:
    """One early exit: a density of its confidence, how often it is right at each, how often the last exit is."""
    confidence = (np.arange(BINS) + 0.5) / BINS
    mass, rights = density(confidence), right(confidence)
    mass = mass / mass.sum()
    kinds = [
        (mass * (rights if early else 1 - rights) * (often if full else 1 - often), early, full)
        for early, often in ((True, full_if_right), (False, full_if_wrong))
        for full in (True, False)
    ]
    share_M = np.concatenate([share for share, _, _ in kinds])
    right_M = np.repeat([early for _, early, _ in kinds], BINS)
    full_M = np.repeat([full for _, _, full in kinds], BINS)
    confidence_M = np.tile(confidence, len(kinds))
    true_M = np.where(right_M, confidence_M, (1 - confidence_M) / 2)
    return Population(
        name, share_M / share_M.sum(), confidence_M[None], right_M[None], true_M[None], full_M, thresholds_J
    )


def _few(name: str, thresholds_J: FloatArray, kinds: list[tuple[float, list[tuple[float, bool]], bool]]) -> Population:
    """Kinds one by one: probability, (confidence, right) of each early exit, right at the last."""
    share_M = np.array([share for share, _, _ in kinds])
    confidence_KM = np.array([[sure for sure, _ in exits] for _, exits, _ in kinds]).T
    right_KM = np.array([[right for _, right in exits] for _, exits, _ in kinds]).T
    full_M = np.array([full for _, _, full in kinds])
    true_KM = np.where(right_KM, confidence_KM, (1 - confidence_KM) / 2)
    return Population(name, share_M / share_M.sum(), confidence_KM, right_KM, true_KM, full_M, thresholds_J)


def _beta(a: float, b: float) -> Callable[[FloatArray], FloatArray]:
    return lambda c: np.asarray(c ** (a - 1) * (1 - c) ** (b - 1))


def calibrated(thresholds_J: FloatArray, risk: float) -> Population:
    """Confidence is the probability of being right; most images are easy."""
    return _smooth("calibrated", thresholds_J, _beta(4, 1), lambda c: c, 0.98, 0.6)


def overconfident(thresholds_J: FloatArray, risk: float) -> Population:
    """Early answers are right far less often than they claim."""
    return _smooth("overconfident", thresholds_J, _beta(5, 0.8), lambda c: c**3, 0.95, 0.7)


def underconfident(thresholds_J: FloatArray, risk: float) -> Population:
    """Early answers are better than they claim, and often right where the last exit is wrong: signed losses."""
    return _smooth("underconfident", thresholds_J, _beta(2, 2), lambda c: np.asarray(c**0.2), 0.9, 0.6)


def surely_wrong(thresholds_J: FloatArray, risk: float) -> Population:
    """Wrong at the highest confidence, right below: the first candidates are the worst."""

    def right(c: FloatArray) -> FloatArray:
        return np.where(c > 0.97, 1 - 3 * risk, 1 - risk / 4)

    return _smooth("surely wrong", thresholds_J, _beta(3, 1), right, 0.99, 0.9)


def on_the_edge(thresholds_J: FloatArray, risk: float) -> Population:
    """No risk down to confidence 0.5; there all images leave, with a risk just above the promised one."""
    lost = 1.001 * risk
    kinds = [(1 - lost, [(0.5, True)], True), (lost, [(0.5, False)], True)]
    return _few("on the edge", thresholds_J, kinds)


def cliff(thresholds_J: FloatArray, risk: float) -> Population:
    """Half the images are safe, the next tenth is nearly all wrong: the risk leaps over the promise in one step."""
    kinds = [
        (0.5, [(0.9, True)], True),
        (0.1 * (1 - 4 * risk), [(0.6, False)], True),
        (0.4 * risk, [(0.6, True)], True),
        (0.4, [(0.3, True)], False),
    ]
    return _few("cliff", thresholds_J, kinds)


def up_and_down(thresholds_J: FloatArray, risk: float) -> Population:
    """Two early exits, one threshold: lower ones move images from a wrong second to a right first exit and back."""
    kinds = [(1 - 6 * risk, [(0.95, True), (0.97, True)], True)]
    for step, sure in enumerate((0.85, 0.75, 0.65, 0.55, 0.45, 0.35)):
        kinds.append((risk * (0.9 + 0.05 * step), [(sure - 0.07, True), (sure, False)], True))
    kinds.append((0.3 * risk, [(0.2, False), (0.25, False)], True))
    return _few("up and down", thresholds_J, kinds)


def coarse_confidence(thresholds_J: FloatArray, risk: float) -> Population:
    """Three confidences in all, many ties, a last exit that is not much better."""
    kinds = []
    for mass, sure, wrong in ((0.4, 1.0, 0.6 * risk), (0.3, 0.8, 1.5 * risk), (0.3, 0.5, 3 * risk)):
        kinds += [
            (mass * (1 - wrong) * 0.97, [(sure, True)], True),
            (mass * (1 - wrong) * 0.03, [(sure, True)], False),
            (mass * wrong * 0.8, [(sure, False)], True),
            (mass * wrong * 0.2, [(sure, False)], False),
        ]
    return _few("coarse confidence", thresholds_J, kinds)


POPULATIONS: tuple[Make, ...] = (
    calibrated,
    overconfident,
    underconfident,
    surely_wrong,
    on_the_edge,
    cliff,
    up_and_down,
    coarse_confidence,
)


def grid(candidates: int) -> npt.NDArray[np.float64]:
    """Thresholds evenly spaced from 1 to 0."""
    return np.linspace(1.0, 0.0, candidates)
