"""What a verdict is made of: contenders that were measured, what the comparison at equal times gives, the file.

S images of a data set, R rounds of timing. Accuracies are in percent, differences in percentage points, times in
milliseconds per image.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from torch import Tensor

import offramp
from offramp.results.bench import Conditions, Positive, TestImages
from offramp.runtime.timing import ratio

FORMAT: Literal[2] = 2  # of the file; 1 had the device twice
CONFIDENCE = 0.95  # of all intervals together
Kind = Literal["engine", "cut", "alone"]
Answer = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class ContenderFigures:
    """A contender in short; see `Contender`. `ms_low` to `ms_high` is the 90 % interval of `ms` over rounds."""

    name: str
    kind: Kind
    exit: int | None
    top1: float
    search_top1: float
    ms: Positive
    ms_low: float
    ms_high: float
    operations: float
    seeds: int
    straight: bool


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to answer images, measured.

    Attributes:
        name: In words, unique.
        kind: `engine`: early exits under a policy. `cut`: the run's network straight to one exit, nothing computed that
            this exit does not need. `alone`: a network of that shape, trained with this exit alone.
        exit: Which exit, from 1; None for an engine.
        right_S: Of each test image, whether it is answered rightly: 0 or 1, or a mean over seeds, float64.
        search_right_S: The same of the search images.
        ms_R: Milliseconds per image in each round; the rounds are those of all contenders.
        seeds: How many trainings it stands for.
        straight: Whether an engine runs straight on, no exit asked, because that is faster.
    """

    name: str
    kind: Kind
    exit: int | None
    right_S: Tensor
    search_right_S: Tensor
    ms_R: Sequence[float]
    operations: float
    seeds: int = 1
    straight: bool = False

    @property
    def ms(self) -> float:
        """The median over rounds."""
        return median(self.ms_R)

    @property
    def top1(self) -> float:
        """Accuracy on the test images."""
        return 100 * self.right_S.double().mean().item()

    @property
    def search_top1(self) -> float:
        """Accuracy on the search images."""
        return 100 * self.search_right_S.double().mean().item()

    def figures(self) -> ContenderFigures:
        """Without the images; the interval of the median time is by order statistics."""
        bounds = ratio(self.ms_R, [1.0] * len(self.ms_R))
        return ContenderFigures(
            name=self.name,
            kind=self.kind,
            exit=self.exit,
            top1=self.top1,
            search_top1=self.search_top1,
            ms=self.ms,
            ms_low=bounds["at_least"],
            ms_high=bounds["at_most"],
            operations=self.operations,
            seeds=self.seeds,
            straight=self.straight,
        )


@dataclass(frozen=True)
class EqualTimeComparison:
    """Early exits under one policy against the best smaller network of the same time.

    Attributes:
        rivals: Name of the smaller network; of two where their mixture takes exactly that time.
        share: Of the images, those that the second of two answers.
        gain: `top1` less that of the rival; `low` to `high` is its interval.
        surest: The lower end against the smaller networks that are best on the test images, where that is less: these
            may be chosen by luck, but a yes has to hold against them too.
        straight: Whether the engine runs straight on.
        missing: Exits (from 1) next to that time whose network trained alone was not there to compare with.
    """

    engine: str
    ms: float
    top1: float
    rivals: tuple[str, ...]
    share: float
    rival_top1: float
    gain: float
    low: float
    high: float
    surest: float
    straight: bool
    missing: tuple[int, ...]

    def answer_for(self, least_gain: float) -> Answer:
        """Whether early exits gain more than `least_gain` points here: yes, no, or open."""
        if self.straight or self.high <= least_gain:
            return "no"
        return "yes" if self.surest > least_gain and not self.missing else "open"


@dataclass(frozen=True)
class JudgedComparison(EqualTimeComparison):
    """The same, with the answer for what has to be gained."""

    answer: Answer


@dataclass(frozen=True)
class Conclusion:
    """What follows, in words: `answer` is to "is early exit worth it?"."""

    answer: Answer
    headline: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class VerdictImages(TestImages):
    """The test set; how many images thresholds were found on, and how many were timed in a round."""

    search_images: int
    timed: int


@dataclass(frozen=True)
class Verdict(Conclusion):
    """Is early exit worth it for this network, data and machine? As `verdict.json` holds it.

    Attributes:
        weights: Hash of the network's weights.
        least_gain: Points that have to be gained for a yes.
        batch_size: Images answered at a time.
        comparisons: One for each policy, by time.
        contenders: All that were measured.
        frontier: Names of the smaller networks that are best at some time, by accuracy on the search images.
        missing: Exits (from 1) without a network trained alone.
        conditions: Of the machine before it was busy with this.
        form: How the engine runs the network's modules.
        trained: How the smaller networks were trained, in sentences.
        wrong: Answers, of those timed, that rounding does not explain: 0, or something is broken.
        left_out: Forms that were not used, or not with some smaller networks, and why, in sentences.
        written: The files written; not in the file itself.
    """

    weights: str
    least_gain: float
    batch_size: int
    comparisons: tuple[JudgedComparison, ...]
    contenders: tuple[ContenderFigures, ...]
    frontier: tuple[str, ...]
    missing: tuple[int, ...]
    data: VerdictImages
    conditions: Conditions
    form: str
    trained: tuple[str, ...]
    wrong: int
    left_out: tuple[str, ...] = ()
    confidence: float = CONFIDENCE
    format: Literal[2] = FORMAT
    offramp: str = offramp.__version__
    written: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values, as the file holds them."""
        values = asdict(self)
        del values["written"]
        return values
